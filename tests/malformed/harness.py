"""What every malformed input must lead to: a short refusal that names the culprit, in time, with nothing left behind.

A generator makes the input, calls the command line with `call` (in this process) or `call_process`, and judges the
result with `assert_stated`. Where the input is valid after all, `dry` stops the run after its plan.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from precision_lab.cli import main

PATIENCE = 20.0
"""Seconds after which an input counts as a hang."""

SHOWN = 40
"""The number of characters of a long value that a message must show to name it."""


class Hung(BaseException):
    """Raised in the middle of a call that takes too long."""


class Accepted(BaseException):
    """Raised in place of a run whose input is valid."""


@dataclass(frozen=True)
class Outcome:
    """What one call led to. raised: the exception that left the command line, which is a fault in every case.

    code: the exit code; 0 for an input that is valid (see `dry`). left: paths that were created, changed or removed
    below the working folder.
    """

    code: int | None
    out: str = ""
    err: str = ""
    left: Sequence[str] = ()
    seconds: float = 0.0
    raised: str = ""


@dataclass(frozen=True)
class Input:
    """A malformed input.

    - name: of the test. arguments: of the command line.
    - culprits: the message must contain one of these keys or values. None where the input may be valid.
    - files: texts or bytes to write before, by path below the working folder.
    - deep: whether only the plan of a run can tell (see `dry`).
    """

    name: str
    arguments: Sequence[str]
    culprits: Sequence[str] | None = None
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    deep: bool = False


def call(arguments: Sequence[str], folder: Path, patience: float = PATIENCE) -> Outcome:
    """Calls the command line in this process, in the working folder `folder`, with `sys.path` kept as it is."""
    before, path, working = _contents(folder), list(sys.path), os.getcwd()
    out, err = io.StringIO(), io.StringIO()
    code, raised, started = None, "", time.monotonic()
    os.chdir(folder)
    try:
        with _limited(patience), redirect_stdout(out), redirect_stderr(err):
            code = main(list(arguments))
    except Accepted:
        code = 0
    except BaseException as error:  # SystemExit too: whatever leaves `main` is a fault
        if isinstance(error, KeyboardInterrupt):
            raise
        raised = f"{type(error).__name__}: {error}"
    finally:
        os.chdir(working)
        sys.path[:] = path
    return Outcome(code, out.getvalue(), err.getvalue(), _changed(before, folder), time.monotonic() - started, raised)


def call_process(arguments: Sequence[str], folder: Path, patience: float = PATIENCE) -> Outcome:
    """Calls `python -m precision_lab` as a process of its own; see `call`."""
    before, started = _contents(folder), time.monotonic()
    root = Path(__file__).parents[2]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "precision_lab", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=patience,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
    except subprocess.TimeoutExpired:
        return Outcome(None, left=_changed(before, folder), seconds=patience, raised=f"Hung: over {patience} s")
    return Outcome(done.returncode, done.stdout, done.stderr, _changed(before, folder), time.monotonic() - started)


_LISTED_TWICE = re.compile(r"expected (one|some) of \S+, .*\bAvailable: ")


def assert_stated(outcome: Outcome, culprits: Iterable[str] | None, may_leave: bool = False) -> None:
    """Fails unless `outcome` is a refusal that names one of `culprits`, or, where they are None, may be a result.

    may_leave: whether a result (exit code 0 or 1) may write.
    """
    shown = f"exit code {outcome.code} after {outcome.seconds:.1f} s\n{outcome.out}\n{outcome.err}"
    assert not outcome.raised, f"{outcome.raised}\n{shown}"
    assert "Traceback" not in outcome.err, shown
    assert outcome.seconds < PATIENCE, shown
    allowed = (2,) if culprits is not None else (0, 1, 2)
    assert outcome.code in allowed, shown
    if outcome.code == 2:
        lines = outcome.err.strip().splitlines()
        assert 1 <= len(lines) <= 2, shown
        assert not _LISTED_TWICE.search(outcome.err), f"lists its choices twice\n{shown}"
        if culprits is not None:
            assert any(culprit in outcome.err for culprit in culprits), f"names none of {culprits}\n{shown}"
    if outcome.code == 2 or not may_leave:
        assert not outcome.left, f"{shown}\nleft: {outcome.left}"


def write(files: Mapping[str, str | bytes], folder: Path) -> None:
    """Writes the files of an input."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)


def named(value: str) -> str:
    """The part of a value that a message must show."""
    return value[:SHOWN]


@dataclass
class Dry:
    """plans: whether a run is planned before it is stopped, which reads the checkpoint."""

    plans: bool = True


@pytest.fixture
def dry(monkeypatch: pytest.MonkeyPatch) -> Dry:
    """Stops runs, proofs and measurements before they begin: the input is valid, and nothing is written."""
    from precision_lab.cli import submit
    from precision_lab.device.behaviour import suite
    from precision_lab.lab import equivalence, run
    from precision_lab.lab.plan import plan

    state = Dry()

    def stopped(*given: object, **settings: object) -> None:
        raise Accepted

    def planned(spec: Any, *rest: object) -> None:
        if state.plans:
            plan(spec)
        raise Accepted

    monkeypatch.setattr(run, "run", planned)
    monkeypatch.setattr(equivalence, "prove", stopped)
    monkeypatch.setattr(suite, "measure", stopped)
    monkeypatch.setattr(submit, "measure", stopped)
    return state


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def hang(number: int, frame: object) -> None:
        raise Hung(f"over {seconds} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file below `folder`; folders have neither."""
    found = {}
    for path in folder.rglob("*"):
        if "__pycache__" in path.parts:
            continue
        state = path.lstat()
        found[str(path.relative_to(folder))] = (0, 0) if path.is_dir() else (state.st_size, state.st_mtime_ns)
    return found


def _changed(before: Mapping[str, tuple[int, int]], folder: Path) -> list[str]:
    after = _contents(folder)
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
