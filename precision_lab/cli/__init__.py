"""The command line: `python -m precision_lab [COMMAND] [overrides]`, `run` if no command is given."""

from __future__ import annotations

import importlib
import sys

from precision_lab import __version__
from precision_lab.device import allocator, blas
from precision_lab.errors import nearest

# command -> (module with `task`, root configuration), imported when called: --help must not wait for them
COMMANDS = {
    "run": ("precision_lab.cli.run", "config"),
    "report": ("precision_lab.cli.report", "report"),
    "gate": ("precision_lab.cli.gate", "gate"),
    "compare": ("precision_lab.cli.compare", "compare"),
    "device": ("precision_lab.cli.device", "device"),
    "models": ("precision_lab.cli.models", "models"),
    "prove": ("precision_lab.cli.prove", "prove"),
}

# overrides that name the experiment of `gate`, or a finished run; without one it runs the experiment `gate`
_OF_A_GATE = ("+exp=", "exp=", "run=")


def main(argv: list[str] | None = None) -> int:
    """Runs a command; exit code 0 done, 1 a failed expectation, 2 a mistake in the input, 130 Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    if any(flag in argv for flag in ("-h", "--help")):
        from precision_lab.cli.help import text

        print(text())  # noqa: T201
        return 0
    if "--version" in argv:
        print(__version__)  # noqa: T201
        return 0
    command, rest = "run", argv
    if argv and "=" not in argv[0] and not argv[0].startswith(("-", "+", "~")):
        command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        print(f"Unknown command {command!r}. {nearest(command, COMMANDS)}", file=sys.stderr)  # noqa: T201
        return 2
    module, config = COMMANDS[command]
    command_line = [command, *rest]
    if command == "gate" and not any(argument.startswith(_OF_A_GATE) for argument in rest):
        rest = [*rest, "+exp=gate"]
    allocator.keep_freed()
    blas.preload()
    from precision_lab.cli.app import launch

    return launch(importlib.import_module(module).task, config, rest, command_line)
