"""Wraps Hydra: keeps its grammar and multirun, adds exit codes and one-line errors, and avoids stray folders."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from precision_lab.cli.composing import check_experiment, check_files, described_failure, parsed
from precision_lab.cli.ending import guarded
from precision_lab.cli.folders import with_folder
from precision_lab.cli.paths import conf_dir
from precision_lab.errors import InputError, VariantError

# A command: maps the composed configuration and the command line to an exit code.
Task = Callable[[DictConfig, Sequence[str]], int]


def launch(task: Task, config_name: str, argv: Sequence[str], command: Sequence[str]) -> int:
    """Composes the configuration and runs `task`, with -m once per combination; returns the largest exit code."""

    def compose_and_run() -> int:
        args = _parse(argv)
        overrides = parsed(args.overrides)
        name = args.config_name or config_name
        check_experiment(name, command, overrides)
        with _composing():
            hydra = _hydra(args.config_dir)
            if args.cfg:
                hydra.show_cfg(name, args.overrides, args.cfg, package=args.package, resolve=args.resolve)
                return 0
            if args.multirun:
                from precision_lab.cli.sweep import run_sweep

                return run_sweep(hydra, name, task, command, overrides, args.overrides)

            def job(config: DictConfig) -> int:
                return guarded(lambda: _run(task, config, command))

            return int(hydra.run(name, job, args.overrides, with_log_configuration=False).return_value)

    try:
        return guarded(compose_and_run)
    finally:
        GlobalHydra.instance().clear()


def _run(task: Task, config: DictConfig, command: Sequence[str]) -> int:
    with with_folder(config) as config:
        return task(config, command)


def _hydra(config_dir: str | None) -> Hydra:
    search_path = create_config_search_path(str(conf_dir()))
    if config_dir:
        folder = Path(config_dir).absolute()
        if "\0" in config_dir or not folder.is_dir():
            raise InputError(f"--config-dir {config_dir}: no such folder")
        check_files(folder)
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    return Hydra.create_main_hydra2(task_name="precision_lab", config_search_path=search_path)


_UNSUPPORTED = ("hydra_help", "info", "shell_completion", "experimental_rerun", "config_path")


@contextmanager
def _composing() -> Iterator[None]:
    """Turns what Hydra, OmegaConf and PyYAML raise for a configuration that they cannot compose into InputError.

    A job raises nothing, so that what comes out of Hydra is about the configuration.
    """
    try:
        yield
    except (InputError, VariantError):
        raise
    except Exception as error:
        raise InputError(described_failure(error)) from error


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
