"""Sweeps (`--multirun`): one job for each combination of values, started by any of Hydra's launchers."""

from __future__ import annotations

import io
import os
import shutil
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from precision_lab.cli.ending import Ending, ending_of
from precision_lab.cli.folders import claimed, leaves_a_run, writing_to
from precision_lab.cli.sweep_index import collect_sweep
from precision_lab.device import startup
from precision_lab.errors import InputError, VariantError, first_line
from precision_lab.record.sweep import ERROR, PLAN, JobError, by_name

if TYPE_CHECKING:
    from precision_lab.cli.app import Task

_MULTIRUN = ("-m", "--multirun")
_BLAS_THREADS = "OPENBLAS_NUM_THREADS"


def run_sweep(
    hydra: Hydra, name: str, task: Task, command: Sequence[str], overrides: Sequence[Override], given: Sequence[str]
) -> int:
    """Runs every combination and writes the index; returns the largest exit code.

    The folder of the sweep remains only if a job left something in it. name: of the root configuration.
    """
    # composing the first job reports mistakes before the sweep creates its folder
    first = [_first_choice(override) for override in overrides]
    config = hydra.compose_config(name, first, RunMode.MULTIRUN, with_log_configuration=False)
    if any(override.startswith("out=") and "${" not in override for override in first):
        raise InputError("out=DIR would be the folder of every job. Give out=DIR/${hydra:job.num}")
    with _claimed(config) as folder:
        return _run_jobs(hydra, name, task, command, given, folder)


@contextmanager
def _claimed(config: DictConfig) -> Iterator[Path]:
    """Creates the folder of a sweep. Raises InputError if it exists and its name holds no time."""
    folder = Path(config.hydra.sweep.dir)
    given: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    names_time = "${now:" in str(given["dir"])
    with claimed(folder) as own:
        if own != folder and not names_time:
            raise InputError(f"hydra.sweep.dir={folder} exists already, expected a new folder for the sweep")
        yield own


def _run_jobs(hydra: Hydra, name: str, task: Task, command: Sequence[str], given: Sequence[str], folder: Path) -> int:
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    # the folder's name holds the time, and this one is claimed; jobs read the mode
    fixed = [*given, f"hydra.sweep.dir='{quoted}'", "hydra.mode=MULTIRUN"]
    job = Job(task, [word for word in command if word not in (*given, *_MULTIRUN)])
    try:
        jobs = jobs_of(hydra.multirun(name, job, fixed, with_log_configuration=False))
    except KeyboardInterrupt:
        collect_sweep((), folder)
        raise
    except Exception as error:
        launcher = _launcher_in(error)
        if launcher is None:
            raise
        message = f"{launcher} failed: {type(error).__name__}: {first_line(error).rstrip('.')}"
        if _remove_if_empty(folder, with_logs=False):  # logs say why a job could not begin
            raise InputError(message) from error
        collect_sweep((), folder)
        raise VariantError(f"{message}. Finished jobs are kept; `report sweep={folder}` lists them") from error
    endings: list[Ending] = [done.return_value for done in jobs]
    for number, ending in enumerate(endings if not job.was_called else ()):
        ending.tell(f"job {number}")
    codes = [ending.code for ending in endings]
    collect_sweep(jobs, folder)
    if set(codes) == {2}:
        _remove_if_empty(folder)
    return max(codes, default=0)


def jobs_of(results: object) -> list[JobReturn]:
    """The jobs in a sweeper's result, which may be nested arbitrarily."""
    if isinstance(results, JobReturn):
        return [results]
    return [job for item in results for job in jobs_of(item)] if isinstance(results, list | tuple) else []


class Job:
    """The callable for Hydra's launchers, which may pickle it and call it in a process on another machine.

    It returns how the job ended, and raises nothing but KeyboardInterrupt. In the launching process it also prints the
    message; of other processes the output may be out of sight. options: the words of the command line that are no
    overrides, the command first. was_called: whether this object itself was called, not a copy in another process.
    """

    def __init__(self, task: Task, options: Sequence[str]):
        self.task = task
        self.options = options
        self.folder = os.getcwd()
        self.blas_threads = os.environ.get(_BLAS_THREADS)
        self.launching_process = _this_process()
        self.was_called = False

    def __call__(self, config: DictConfig) -> Ending:
        hydra = HydraConfig.get()
        if _this_process() == self.launching_process:
            self.was_called = True
            ending = ending_of(lambda: self._run(config))
            ending.tell(f"job {hydra.job.num}")
        else:
            ending = ending_of(lambda: self._run_in_worker(config, f"job {hydra.job.num}: "))
        if ending.message and leaves_a_run(config):
            error = JobError(ending.code, ending.message, list(hydra.overrides.task))
            with suppress(InputError):  # a full disk; the message is printed
                error.write(_folder_of_job())
        return ending

    def _run_in_worker(self, config: DictConfig, prefix: str) -> int:
        """Runs the task in a process that a launcher has started, set up as the command line sets up its own."""
        from precision_lab.cli import find_modules_here

        os.chdir(self.folder)
        find_modules_here()
        if "mlx.core" not in sys.modules:  # else the process has run another job
            if self.blas_threads is None:  # launchers set it to share the cores: sums would be taken in another order
                os.environ.pop(_BLAS_THREADS, None)
            startup.prepare()
        with redirect_stdout(_Prefixed(sys.stdout, prefix)):
            return self._run(config)

    def _run(self, config: DictConfig) -> int:
        writes = leaves_a_run(config) and config.out is None
        return self.task(writing_to(_folder_of_job(), config) if writes else config, self._command(config))

    def _command(self, config: DictConfig) -> list[str]:
        """The command line that runs this job alone, and continues it with resume=true."""
        own = [str(override) for override in HydraConfig.get().overrides.task]
        if not leaves_a_run(config):
            return [*self.options, *own]
        out = config.get("out") or _folder_of_job()
        return [*self.options, *(override for override in own if "out" not in by_name([override])), f"out={out}"]


class _Prefixed(io.TextIOBase):
    """A text stream that puts a prefix before every line: the lines of several jobs mix on one terminal."""

    def __init__(self, stream: TextIO, prefix: str):
        self._stream = stream
        self._prefix = prefix
        self._at_start = True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self._stream.write(self._prefix + line if self._at_start else line)
            self._at_start = line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def _launcher_in(error: Exception) -> str | None:
    """The package of the launcher that raised an exception, for a job that was killed or a queue that refuses.

    None for an exception of Hydra itself, and of its own launcher.
    """
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((module.split(".")[1] for module in modules if module.startswith("hydra_plugins.")), None)


def _this_process() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


def _folder_of_job() -> Path:
    hydra: Any = HydraConfig.get()
    return Path(str(hydra.sweep.dir)) / str(hydra.job.num)


def _remove_if_empty(folder: Path, with_logs: bool = True) -> bool:
    """Removes the folder of a sweep that holds only its plan, errors of jobs and perhaps a launcher's logs.

    with_logs: whether it may hold logs, in folders with a dot. Returns whether it was removed.
    """
    left = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    if not all(path.name in (PLAN, ERROR) or (with_logs and path.parts[0].startswith(".")) for path in left):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    for parent in folder.parents[:2]:
        with suppress(OSError):  # it was there before, and holds something
            parent.rmdir()
    return True


def _first_choice(override: Override) -> str:
    if not override.is_sweep_override():
        return str(override.input_line)
    return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
