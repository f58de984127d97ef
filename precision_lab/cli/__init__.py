"""The command line: `python -m precision_lab [COMMAND] [overrides]`, `run` if no command is given."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from precision_lab import __version__
from precision_lab.errors import InputError, nearest, shown

if TYPE_CHECKING:
    from omegaconf import DictConfig

# command -> (module with `task`, root configuration), imported when called: --help must not wait for them
COMMANDS = {
    "run": ("precision_lab.cli.run", "config"),
    "report": ("precision_lab.cli.report", "report"),
    "gate": ("precision_lab.cli.gate", "gate"),
    "compare": ("precision_lab.cli.compare", "compare"),
    "device": ("precision_lab.cli.device", "device"),
    "models": ("precision_lab.cli.models", "models"),
    "prove": ("precision_lab.cli.prove", "prove"),
    "sensitivity": ("precision_lab.cli.sensitivity", "sensitivity"),
    "recipe": ("precision_lab.cli.recipe", "recipe"),
    "search": ("precision_lab.cli.search", "search"),
    "culprits": ("precision_lab.cli.culprits", "culprits"),
    "survival": ("precision_lab.cli.survival", "survival"),
    "submit": ("precision_lab.cli.submit", "submit"),
}

# strategies of `search` with a module and a root configuration of their own
STRATEGIES = {
    "scales": ("precision_lab.cli.scales", "scales"),
    "fp8_scales": ("precision_lab.cli.fp8_scales", "fp8_scales"),
}

# overrides that make another task of a command, with a module and a root configuration of its own
TASKS = {
    ("compare", "dump="): ("precision_lab.cli.foreign", "compare_dump"),
    ("compare", "devices="): ("precision_lab.cli.devices", "compare_devices"),
    ("models", "dump_inputs="): ("precision_lab.cli.dump_inputs", "dump_inputs"),
}

# overrides that name the experiment of `gate`, or a finished run; without one it runs the experiment `gate`
_OF_A_GATE = ("+exp=", "exp=", "run=")

# prints a script for a shell, and what completes a word; it has no configuration
COMPLETION = "completion"

_HELP = ("-h", "--help")

# options of Hydra that are followed by a value
_WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c", "--package", "-p")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; without `argv`, that of the process, whose working folder is then searched for modules.

    Exit codes: 0 done, 1 a failed expectation, 2 a mistake in the input, 3 a fault of this program, 130 Ctrl-C.
    """
    if argv is None:
        argv = sys.argv[1:]
        find_modules_here()
    if "--version" in argv:
        print(__version__)  # noqa: T201
        return 0
    wants_help = any(flag in argv for flag in _HELP)
    argv = [argument for argument in argv if argument not in _HELP]
    command, rest = _split(argv)
    if command not in (*COMMANDS, COMPLETION):
        print(f"Unknown command {shown(command)}. {nearest(command, (*COMMANDS, COMPLETION))}", file=sys.stderr)  # noqa: T201
        return 2
    if command == COMPLETION:
        from precision_lab.cli import completion

        return completion.task(["--help"] if wants_help else rest)
    module, config = task_of(command, rest)
    if wants_help:
        from precision_lab.cli import help

        print(help.command(command, config, rest) if argv else help.program(_abouts()))  # noqa: T201
        return 0
    command_line = [command, *rest]
    if command == "gate" and not any(argument.startswith(_OF_A_GATE) for argument in rest):
        rest = [*rest, "+exp=gate"]
    from precision_lab.device import startup

    try:
        startup.prepare()
    except InputError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    from precision_lab.cli.app import launch

    return launch(partial(_task, module), config, rest, command_line)


def task_of(command: str, arguments: Sequence[str]) -> tuple[str, str]:
    """The module and the root configuration of a command with these arguments."""
    if command == "search":
        strategy = [argument.removeprefix("strategy=") for argument in arguments if argument.startswith("strategy=")]
        return STRATEGIES.get(strategy[-1] if strategy else "", COMMANDS[command])
    for (name, override), task in TASKS.items():
        if command == name and any(argument.startswith(override) for argument in arguments):
            return task
    return COMMANDS[command]


def _abouts() -> dict[str, str]:
    """What each command does."""
    from precision_lab.cli import completion, help

    return {**{name: help.summary(config) for name, (_, config) in COMMANDS.items()}, COMPLETION: completion.ABOUT}


def _task(module: str, config: DictConfig, command: Sequence[str]) -> int:
    """The task of a command. Its module is imported here: a configuration that cannot be composed needs none of it."""
    return int(importlib.import_module(module).task(config, command))


def _split(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The command, and the arguments without it. It is the first argument that is neither an option nor an override."""
    is_value = False
    for at, argument in enumerate(argv):
        if is_value or argument.startswith("-"):
            is_value = not is_value and argument in _WITH_VALUE
            continue
        if "=" in argument or argument.startswith(("+", "~")):
            break
        return argument, [*argv[:at], *argv[at + 1 :]]
    return "run", list(argv)


def find_modules_here() -> None:
    """Lets the console script find modules of the working folder, as `python -m precision_lab` does."""
    here = os.getcwd()
    if not sys.flags.safe_path and not {"", here} & set(sys.path):
        sys.path.insert(0, here)
