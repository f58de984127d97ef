"""The folder of a sweep: a folder for each job, named by its number, with its run or the error that ended it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from precision_lab.errors import InputError
from precision_lab.record import manifest
from precision_lab.record.files import RESTORE, advising, read_json, write_json
from precision_lab.record.manifest import SCHEMA_VERSION, typed

if TYPE_CHECKING:
    from precision_lab.record.run import Run

ERROR = "error.json"
PLAN = "multirun.yaml"
"""The configuration of the sweep itself, which Hydra writes before the first job."""

_PLACES = ("out", "hydra.sweep.dir")
_PYTHON = 3
"""The words of a manifest's command before the command itself: python -m precision_lab."""


@dataclass(frozen=True)
class JobError:
    """error.json: the exit code of a job that raised, the message, and the job's overrides in Hydra's grammar."""

    exit_code: int
    message: str
    overrides: Sequence[str] = ()

    def write(self, folder: Path) -> None:
        """Writes the file into the folder of its job, whole or not at all."""
        write_json(folder / ERROR, {"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> JobError | None:
        """The error of a job, None if there is none. Raises InputError for a file that cannot be read."""
        path = folder / ERROR
        if not path.exists():
            return None
        with advising(RESTORE):
            return typed(cls, read_json(path), path)


@dataclass(frozen=True)
class Job:
    """A job of a sweep. run: None if it has left none. overrides: its own, text by name."""

    name: str
    folder: Path
    overrides: Mapping[str, str]
    run: Run | None
    error: JobError | None

    @property
    def trouble(self) -> str:
        """Why the job has no complete run, in a sentence; empty if it has one."""
        if self.run is not None and self.run.manifest.status == "complete":
            return ""
        ended = f"exit code {self.error.exit_code}: {self.error.message}" if self.error else ""
        if self.run is None:
            return ended or "no run yet: the job has not begun, or was stopped before its run"
        return f"{self.run.manifest.status}, {ended}" if ended else self.run.standing


def read(sweep: Path, planned: Mapping[str, Sequence[str]], runs: Mapping[str, Path] | None = None) -> list[Job]:
    """The jobs of a sweep in natural order of their names.

    planned: the overrides of the jobs that the sweep was to run, by name. runs: run folders that are not in the folder
    of the sweep, by the names of their jobs. Raises InputError if there is no run at all, or a file cannot be read.
    """
    if not sweep.is_dir():
        raise InputError(
            f"{sweep} is not the folder of a sweep: {'not a folder' if sweep.exists() else 'no such folder'}"
        )
    folders = {path.name: path for path in sweep.iterdir() if _is_of_a_job(path)}
    folders |= {name: sweep / name for name in planned if name not in folders}
    folders |= runs or {}
    jobs = [read_job(name, folders[name], planned.get(name, ())) for name in sorted(folders, key=natural)]
    if not any(job.run for job in jobs):
        raise InputError(f"{sweep} is not the folder of a sweep: there is no run in a folder below it")
    return jobs


def natural(name: str) -> list[tuple[bool, int, str]]:
    """A sort key that puts job 2 before job 10."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(not piece[0].isdigit(), int(piece) if piece.isdigit() else 0, piece) for piece in pieces]


def by_name(overrides: Sequence[str]) -> dict[str, str]:
    """The values of overrides as text, by the names that they set."""
    pairs = (str(override).partition("=") for override in overrides)
    return {name.lstrip("+~"): value for name, _, value in pairs}


def differing(overrides: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """For each job, the overrides that are not the same in all jobs, without those that name a folder."""
    names = dict.fromkeys(name for own in overrides for name in own if name not in _PLACES)
    kept = [name for name in names if len({own.get(name) for own in overrides}) > 1]
    return [{name: own.get(name, "") for name in kept} for own in overrides]


def _is_of_a_job(path: Path) -> bool:
    return (path / manifest.FILE).is_file() or (path / ERROR).is_file()


def read_job(name: str, folder: Path, planned: Sequence[str]) -> Job:
    """The job in a folder. planned: its overrides, if they are known. Raises InputError for what cannot be read."""
    from precision_lab.record.run import Run  # needs pandas, which the command line of a sweep does not

    run = Run.open(folder) if (folder / manifest.FILE).is_file() else None
    error = JobError.read(folder)
    words = [] if run is None else list(run.manifest.command[_PYTHON:])
    own = [word for word in words if "=" in word and not word.startswith("-")]
    if not own or {"-m", "--multirun"} & set(words):  # the command of the whole sweep
        own = list(planned) or own
    return Job(name, folder, by_name(own or (error.overrides if error else ())), run, error)
