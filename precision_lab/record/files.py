"""Writing the files of a run: strict JSON, whole or not at all, and null with a reason for an undefined number."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from precision_lab.errors import InputError, first_line, inline

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

_LARGEST_TEXT = 1 << 28
"""Maximum size in bytes of a text file that is read, far above that of any manifest or baseline."""


class NotWrittenError(InputError):
    """A file could not be written: a full disk, missing permission, a name that is taken."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context manager for code that writes `path`. Raises NotWrittenError, with the system's reason, for an OSError."""
    try:
        yield
    except OSError as error:
        raise NotWrittenError(f"{path} cannot be written: {error.strerror or first_line(error)}") from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path beside `path`, which becomes `path` when it returns; makes the folder.

    Raises NotWrittenError if the system refuses; `path` is then as it was.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two reports of one run may be drawn at once
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


class File(NamedTuple):
    """A file of a run folder that is not written yet. path: relative to the folder, with slashes."""

    path: str
    content: bytes

    def write(self, run: Path) -> None:
        """Writes it into the folder `run`, whole or not at all."""
        write_atomically(run / self.path, lambda temporary: temporary.write_bytes(self.content))


def write_text(path: Path, text: str) -> None:
    """UTF-8 text, whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Strict JSON, whole or not at all. Raises ValueError for a number that is not finite."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


RESTORE = "Restore the file, or run again"
"""What to do about a damaged file of a run."""


@contextmanager
def advising(advice: str) -> Iterator[None]:
    """Context manager that adds what to do to the message of an InputError, in place of RESTORE."""
    try:
        yield
    except InputError as error:
        reason = str(error).removesuffix(f". {RESTORE}")
        raise InputError(f"{reason}. {advice}") from error


def parse_json(text: str | bytes) -> Any:
    """The value that JSON states, whose objects have each key once: of two, readers take different ones.

    Raises ValueError, also for a key that is there twice, and RecursionError.
    """
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {inline(keys.most_common(1)[0][0])!r} is there twice")
    return value


def read_text(path: Path) -> str:
    """The UTF-8 text of a regular file. Raises InputError for anything else."""
    try:
        if not path.exists():
            raise InputError(f"{path} is missing")
        if not path.is_file():  # reading a pipe would wait for its writer
            raise InputError(f"{path} is not a file")
        if path.stat().st_size > _LARGEST_TEXT:
            raise InputError(f"{path} is larger than {_LARGEST_TEXT >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or first_line(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error


def read_json(path: Path) -> Any:
    """Raises InputError for a file that cannot be read or is not strict JSON: finite numbers and valid text."""
    text = read_text(path)
    try:
        content = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()  # half of a pair is no text
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        raise InputError(f"{path} is not strict JSON: {reason}") from error
    return content


@contextmanager
def replacing(out: Path, needed: int) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` at the end of the block.

    If the block raises, it vanishes with the folders that were created above it.
    """
    out = out.absolute()
    missing = [folder for folder in out.parents if not folder.exists()]
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists, expected a new or an empty folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < needed:
            raise InputError(f"{out}: needs {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB free")
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise InputError(f"{out}: cannot write there: {error.strerror}") from error
    try:
        temporary.chmod(0o755)
        yield temporary
        os.replace(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in missing:
            with suppress(OSError):  # another command uses it by now
                folder.rmdir()
        raise


def number_or_reason(key: str, value: float, reason: str) -> dict[str, Any]:
    """`{key: value}`, or for a number that is not finite null, with `<key>_reason` beside it."""
    return {key: float(value)} if math.isfinite(value) else {key: None, f"{key}_reason": reason}


def _refuse(name: str) -> float:
    raise ValueError(f"it holds {name}")


def _finite(text: str) -> float:
    return value if math.isfinite(value := float(text)) else _refuse(text)
