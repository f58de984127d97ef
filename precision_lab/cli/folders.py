"""The default folders of commands: named after the time, and claimed, so that no two commands share one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from precision_lab.cli.literal import literally
from precision_lab.record.folders import check_name, writable

RUNS = Path("results") / "runs"
_ATTEMPTS = 20
"""Attempts to create a folder whose parent others remove."""


def stamped(experiment: str) -> Path:
    """results/runs/<experiment>/<UTC time>; nothing is created."""
    return RUNS / experiment / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


@contextmanager
def claimed(path: Path) -> Iterator[Path]:
    """Creates the folder `path`, or PATH-2, PATH-3, ... where that exists: a folder belongs to whoever creates it.

    A folder that is still empty at the end is removed, with those created above it. Raises InputError for a name that
    holds control characters, and if the folder cannot be created.
    """
    check_name(path)
    created: list[Path] = []
    try:
        with writable(path):
            folder = next(folder for folder in _numbered(path) if _created(folder, created))
        yield folder
    finally:
        for folder in reversed(created):
            with suppress(OSError):  # it is not empty
                folder.rmdir()


@contextmanager
def with_folder(config: DictConfig) -> Iterator[DictConfig]:
    """`config` with a claimed folder as `out`, if its command writes a run and no folder is given."""
    experiment = None
    with suppress(OmegaConfBaseException, RecursionError):  # the command says what is wrong with its settings
        if leaves_a_run(config) and config.out is None and config.get("run") is None:  # `gate run=DIR` reads one
            experiment = config.get("experiment")
    if not isinstance(experiment, str):
        yield config
        return
    with claimed(stamped(experiment)) as out:
        yield writing_to(out, config)


def writing_to(out: Path, config: DictConfig) -> DictConfig:
    """`config` with the folder as `out`."""
    config = config.copy()
    config.out = literally(str(out))
    return config


def leaves_a_run(config: DictConfig) -> bool:
    """Whether the command of a configuration writes the folder of a run."""
    return "variants" in config and "draws" not in config  # `prove` draws inputs, and writes nothing


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in count(2))


def _created(folder: Path, created: list[Path]) -> bool:
    """Creates a folder and those above it, and adds them to `created`. Returns False if it exists."""
    for attempt in range(_ATTEMPTS):
        try:
            missing = reversed([parent for parent in folder.parents if not parent.exists()])
            created.extend(parent for parent in missing if _is_made(parent))
            if is_made := _is_made(folder):
                created.append(folder)
            return is_made
        except FileNotFoundError:  # another command removes the empty folders above at this moment
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _is_made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True
