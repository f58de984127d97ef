"""Wraps Hydra: keeps its grammar and multirun, adds exit codes and one-line errors, and avoids stray folders."""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr
from errno import EACCES, EDQUOT, ENOSPC, EROFS
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from precision_lab.cli.paths import conf_dir
from precision_lab.cli.paths import options as valid_names
from precision_lab.errors import InputError, nearest, visible

# A command: maps the composed configuration and the command line to an exit code.
Task = Callable[[DictConfig, Sequence[str]], int]


def launch(task: Task, config_name: str, argv: Sequence[str], command: Sequence[str]) -> int:
    """Composes the configuration and runs `task`, with -m once per combination; returns the largest exit code."""

    def compose_and_run() -> int:
        args = _parse(argv)
        search_path = create_config_search_path(str(conf_dir()))
        if args.config_dir:
            folder = Path(args.config_dir).absolute()
            if not folder.is_dir():
                raise InputError(f"--config-dir {args.config_dir}: no such folder")
            search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
        hydra = Hydra.create_main_hydra2(task_name="precision_lab", config_search_path=search_path)
        name = args.config_name or config_name
        if args.cfg:
            hydra.show_cfg(name, args.overrides, args.cfg, package=args.package, resolve=args.resolve)
            return 0
        job = _Job(task, command)
        if args.multirun:
            # composing the first job reports mistakes before the sweep creates its folder
            first = [_first_choice(override) for override in OverridesParser.create().parse_overrides(args.overrides)]
            hydra.compose_config(name, first, RunMode.RUN, with_log_configuration=False)
            if any(override.startswith("out=") and "${" not in override for override in first):
                raise InputError("out=DIR would be the folder of every job. Give out=DIR/${hydra:job.num}")
            results = hydra.multirun(name, job, args.overrides, with_log_configuration=False)
            return max(_codes(results), default=0)
        return int(hydra.run(name, job, args.overrides, with_log_configuration=False).return_value)

    try:
        return guarded(compose_and_run)
    finally:
        GlobalHydra.instance().clear()


_UNSUPPORTED = ("hydra_help", "info", "shell_completion", "experimental_rerun", "config_path")


class _Job:
    """The callable for Hydra's launchers, possibly in another process; returns an exit code and never raises."""

    def __init__(self, task: Task, command: Sequence[str]):
        self.task = task
        self.command = command

    def __call__(self, config: DictConfig) -> int:
        return guarded(lambda: self.task(config, self.command))


def guarded(action: Callable[[], int]) -> int:
    """The exit code of `action`. User errors and full disks are reported in one or two lines on stderr."""
    try:
        return action()
    except KeyboardInterrupt:
        return _fail("Interrupted. What was finished is kept; resume=true continues.", 130)
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(_configuration_error(error), 2)
    except InputError as error:
        return _fail(str(error), 2)
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            return _fail(f"No space left on the disk ({error.filename or 'while writing'}). resume=true continues.", 2)
        if error.errno in (EACCES, EROFS):
            return _fail(f"Cannot write {error.filename}: {error.strerror}", 2)
        raise


def _fail(message: str, code: int) -> int:
    if os.environ.get("PRECISION_LAB_DEBUG") == "1":
        traceback.print_exc()
    print(visible(message), file=sys.stderr)  # noqa: T201
    return code


def _parse(argv: Sequence[str]) -> Any:
    usage = io.StringIO()
    try:
        with redirect_stderr(usage):
            args = get_args_parser().parse_args(argv)
    except SystemExit as error:
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


def _codes(results: Any) -> Iterable[int]:
    """The exit codes in a sweeper's result, which may be nested arbitrarily."""
    if isinstance(results, JobReturn):
        yield int(results.return_value)
    elif isinstance(results, list | tuple):
        for item in results:
            yield from _codes(item)


def _configuration_error(error: Exception) -> str:
    """The error of Hydra or OmegaConf in one or two lines, with the nearest valid names."""
    text = str(error).strip()
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = [name for name in error.options or valid_names(group) if not name.startswith("_")]
        kind = {"exp": "experiment", "": "configuration"}.get(group, group)
        return f"Unknown {kind} {name!r}. {nearest(name, options)}"
    key = re.search(r"Could not override '([^']+)'", text) or re.search(r"[Kk]ey '([\w.]+)' is not in struct", text)
    full = re.search(r"full_key: ([\w.\[\]]+)", text)
    if key:
        name = full[1] if full else key[1]
        return f"Unknown setting {name!r}. {nearest(name, _known_settings())}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:2])


def _known_settings() -> list[str]:
    """Names of settings down to the second level: those of the commands, and those that a shipped model adds."""
    files = [conf_dir() / f"{name}.yaml" for name in ("config", "gate", "prove")]
    names: set[str] = set()
    for file in (*files, *(conf_dir() / "model").glob("*.yaml")):
        content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        for key, value in content.items():
            if key not in ("defaults", "hydra"):
                names.add(str(key))
                names |= {f"{key}.{below}" for below in value} if isinstance(value, dict) else set()
    return [*(name for name in names if not name.endswith("._target_")), "probe.range.sites", "probe.range.ports"]
