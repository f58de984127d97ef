"""Wraps Hydra: keeps its grammar and multirun, adds exit codes and one-line errors, and avoids stray folders."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from errno import EACCES, EDQUOT, ENOSPC, EROFS
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from precision_lab.cli.composing import check_files, described_failure, parsed
from precision_lab.cli.paths import conf_dir
from precision_lab.cli.sweep import collect_sweep, jobs_of
from precision_lab.errors import InputError, VariantError, described, visible

# A command: maps the composed configuration and the command line to an exit code.
Task = Callable[[DictConfig, Sequence[str]], int]


def launch(task: Task, config_name: str, argv: Sequence[str], command: Sequence[str]) -> int:
    """Composes the configuration and runs `task`, with -m once per combination; returns the largest exit code."""

    def compose_and_run() -> int:
        args = _parse(argv)
        overrides = parsed(args.overrides)
        with _composing():
            hydra = _hydra(args.config_dir)
            name = args.config_name or config_name
            if args.cfg:
                hydra.show_cfg(name, args.overrides, args.cfg, package=args.package, resolve=args.resolve)
                return 0
            job = _Job(task, command)
            if args.multirun:
                return _sweep(hydra, name, job, overrides, args.overrides)
            return int(hydra.run(name, job, args.overrides, with_log_configuration=False).return_value)

    try:
        return guarded(compose_and_run)
    finally:
        GlobalHydra.instance().clear()


def _hydra(config_dir: str | None) -> Hydra:
    search_path = create_config_search_path(str(conf_dir()))
    if config_dir:
        folder = Path(config_dir).absolute()
        if "\0" in config_dir or not folder.is_dir():
            raise InputError(f"--config-dir {config_dir}: no such folder")
        check_files(folder)
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    return Hydra.create_main_hydra2(task_name="precision_lab", config_search_path=search_path)


def _sweep(hydra: Hydra, name: str, job: _Job, overrides: Sequence[Override], given: Sequence[str]) -> int:
    """Runs every combination. The folder of the sweep remains only if a job left something in it."""
    # composing the first job reports mistakes before the sweep creates its folder
    first = [_first_choice(override) for override in overrides]
    config = hydra.compose_config(name, first, RunMode.MULTIRUN, with_log_configuration=False)
    if any(override.startswith("out=") and "${" not in override for override in first):
        raise InputError("out=DIR would be the folder of every job. Give out=DIR/${hydra:job.num}")
    folder = Path(config.hydra.sweep.dir)
    if folder.exists():
        raise InputError(f"hydra.sweep.dir={folder} exists already, expected a new folder for the sweep")
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    # the folder's name holds the time, and this one was looked at; jobs read the mode
    fixed = [*given, f"hydra.sweep.dir='{quoted}'", "hydra.mode=MULTIRUN"]
    jobs = jobs_of(hydra.multirun(name, job, fixed, with_log_configuration=False))
    codes = [int(done.return_value) for done in jobs]
    collect_sweep(jobs, folder)
    if codes and set(codes) == {2} and [path.name for path in folder.glob("*")] in ([], ["multirun.yaml"]):
        shutil.rmtree(folder)
        for parent in folder.parents[:2]:
            with suppress(OSError):  # it was there before, and holds something
                parent.rmdir()
    return max(codes, default=0)


_UNSUPPORTED = ("hydra_help", "info", "shell_completion", "experimental_rerun", "config_path")


class _Job:
    """The callable for Hydra's launchers, possibly in another process; returns an exit code and never raises."""

    def __init__(self, task: Task, command: Sequence[str]):
        self.task = task
        self.command = command

    def __call__(self, config: DictConfig) -> int:
        return guarded(lambda: self.task(config, self.command))


@contextmanager
def _composing() -> Iterator[None]:
    """Turns what Hydra, OmegaConf and PyYAML raise for a configuration that they cannot compose into InputError.

    A job raises nothing, so that what comes out of Hydra is about the configuration.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(described_failure(error)) from error


def guarded(action: Callable[[], int]) -> int:
    """The exit code of `action`. What it raises is reported in one or two lines on stderr."""
    try:
        return action()
    except KeyboardInterrupt:
        return _fail("Interrupted. What was finished is kept; resume=true continues.", 130)
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(described_failure(error), 2)
    except InputError as error:
        return _fail(str(error), 2)
    except VariantError as error:
        return _fail(str(error), 1)
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            return _fail(f"No space left on the disk ({error.filename or 'while writing'}). resume=true continues.", 2)
        if error.errno in (EACCES, EROFS):
            return _fail(f"Cannot write {error.filename}: {error.strerror}", 2)
        return _fault(error)
    except (Exception, SystemExit) as error:
        return _fault(error)


def _fault(error: BaseException) -> int:
    """Saves the traceback of an exception that nothing should raise; exit code 3."""
    handle, name = tempfile.mkstemp(prefix="precision_lab-", suffix=".txt")
    with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write("".join(traceback.format_exception(error)))
    return _fail(f"A fault of precision_lab: {described(error)}. Please report it with {name}", 3)


def _fail(message: str, code: int) -> int:
    if os.environ.get("PRECISION_LAB_DEBUG") == "1":
        traceback.print_exc()
    print(visible(message), file=sys.stderr)  # noqa: T201
    return code


def _parse(argv: Sequence[str]) -> Any:
    usage = io.StringIO()
    try:
        with redirect_stderr(usage):
            args = get_args_parser().parse_intermixed_args(argv)
    except (SystemExit, TypeError) as error:
        reason = usage.getvalue().strip().rpartition("error: ")[2]
        raise InputError(f"{reason or 'Cannot read the command line'}. See --help") from error
    for flag in _UNSUPPORTED:
        if getattr(args, flag, None):
            raise InputError(f"--{flag.replace('_', '-')} is not supported. --cfg job shows the configuration")
    return args


def _first_choice(override: Override) -> str:
    if not override.is_sweep_override():
        return str(override.input_line)
    return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
