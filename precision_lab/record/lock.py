"""The lock of a run folder: at most one run writes into it, together with the child processes that it starts.

The operating system holds the lock (flock), so it ends with its processes, even if they are killed. The file `.lock`
names the holder for others and is removed when the lock is released; one that a killed run left behind blocks nothing.
Children inherit the descriptor: the folder stays locked until the last of them has ended.

On one machine this always holds. Between machines it holds where the file system passes flock on: Linux passes it on to
an NFS server, unless the folder is mounted with `nolock` or `local_lock`. If a whole machine fails, its lock ends when
the server notices. Where a file system has no locks at all, the run goes on, and says so.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from errno import ENOLCK, ENOSYS, ENOTSUP, EOPNOTSUPP
from pathlib import Path
from typing import Any

from precision_lab.errors import InputError

FILE = ".lock"

_PATIENCE = 2.0
"""Seconds to wait for the children of a killed run to end, or for a new holder to write its name."""

_INTERVAL = 0.02
_LARGEST = 4096
_WITHOUT_LOCKS = frozenset({ENOSYS, ENOTSUP, EOPNOTSUPP, ENOLCK})


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    process: int
    host: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    @property
    def has_ended(self) -> bool:
        """Whether the process is known to have ended; one of another machine is not."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it belongs to another user
            return False
        return False


class FolderLock:
    """The lock of one run folder, not held yet."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.has_effect = True
        self._descriptor: int | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What a child process must inherit to hold the lock too; empty while the lock is not held."""
        return () if self._descriptor is None else (self._descriptor,)

    def acquire(self) -> None:
        """Raises InputError that names the holder if another run has the lock, and OSError if it cannot be written.

        `has_effect` is False afterwards if the file system has no locks.
        """
        deadline = time.monotonic() + _PATIENCE
        path = self.folder / FILE
        while self._descriptor is None:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                is_ours = self._locks(descriptor)
                holder = None if is_ours else _read(descriptor)
                if is_ours and _is_at(path, descriptor):  # else the holder before has removed it meanwhile
                    _write(descriptor, Holder(os.getpid(), socket.gethostname()))
                    self._descriptor = descriptor
            finally:
                if self._descriptor is None:
                    os.close(descriptor)
            if not is_ours:
                if (holder is not None and not holder.has_ended) or time.monotonic() > deadline:
                    raise _refusal(self.folder, holder)
                time.sleep(_INTERVAL)

    def release(self) -> None:
        """Removes the file and gives the lock up; nothing if it is not held."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with suppress(OSError):
            if _is_at(self.folder / FILE, descriptor):
                (self.folder / FILE).unlink()  # before the lock ends: whoever gets it later finds another file or none
        os.close(descriptor)

    def _locks(self, descriptor: int) -> bool:
        from filelock import lock_descriptor

        try:
            return lock_descriptor(descriptor, blocking=False)
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            self.has_effect = False
            return True


def holder_of(folder: Path) -> Holder | None:
    """The process that writes into a run folder at this moment; None if there is none, or it cannot be known."""
    from filelock import lock_descriptor

    try:
        descriptor = os.open(folder / FILE, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return None if lock_descriptor(descriptor, blocking=False) else _read(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def check_free(folder: Path) -> None:
    """Raises InputError that names the holder if a run is writing into `folder`."""
    holder = holder_of(folder)
    if holder is not None:
        raise _refusal(folder, holder)


def _refusal(folder: Path, holder: Holder | None) -> InputError:
    name = holder or "another process"
    return InputError(f"{folder} is being written by {name}. Wait until that run has ended, or give another folder")


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write(descriptor: int, holder: Holder) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)


def _read(descriptor: int) -> Holder | None:
    try:
        content: Any = json.loads(os.pread(descriptor, _LARGEST, 0))
        process, host = content["process"], content["host"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None  # it has the lock and has not written its name yet, or somebody has edited the file
    if type(process) is not int or not 0 < process < 2**31 or not isinstance(host, str) or not host.isprintable():
        return None
    return Holder(process, host)
