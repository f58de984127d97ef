"""Generates malformed inputs of the commands other than `run`: every setting with values that it cannot have.

Each input has one fault, on a command line that is valid without it, so that the message can name nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from tests.malformed import command_cases, machine_cases
from tests.malformed.command_cases import DUMP, Case, Files, small_dump
from tests.malformed.command_line import composed, last, misspelt, places, wrong
from tests.malformed.harness import Input, named

LINES: Mapping[str, Sequence[str]] = {
    "survival": ("survival",),
    "sensitivity": ("sensitivity",),
    "search": ("search", "budget.bits=6"),
    "culprits": ("culprits",),
    "scales": ("search", "strategy=scales"),
    "fp8_scales": ("search", "strategy=fp8_scales"),
    "dump_inputs": ("models", "dump_inputs=inputs.safetensors"),
    "compare_dump": ("compare", f"dump={DUMP}"),
    "compare_devices": ("compare", "devices=[a,b]"),
    "compare": ("compare", "runs=[a,b]"),
    "report": ("report", "run=a"),
    "device": ("device",),
    "models": ("models",),
    "recipe": ("recipe", "to=mflux", "technique=[affine4]"),
    "submit": ("submit",),
}
"""A command line for each root configuration that is valid, but for folders of results that are not there."""

STATED = ("device.claims", "search.latency")
"""Settings that a mapping of any content fits."""


OF_COMMANDS: Sequence[Callable[[random.Random], list[Case]]] = (
    command_cases.of_reports,
    command_cases.of_comparisons,
    command_cases.of_models,
    machine_cases.of_submissions,
    machine_cases.of_devices,
    machine_cases.of_completions,
    command_cases.of_measurements,
)


def listed(seed: int) -> list[Input]:
    """Every case of every command once."""
    rng = random.Random(seed)
    return [_input(*case) for cases in OF_COMMANDS for case in cases(rng)]


def of_another_type(rng: random.Random) -> Input:
    root = rng.choice(list(LINES))
    key, value = rng.choice(_entries(root))
    given = wrong(value, rng)
    assert given is not None
    # a group is chosen by its name: `model=3` asks for the option 3
    prefix = "++" if "." in key else ""
    return _input([*_line(root, key), f"{prefix}{key}={given}"], [key, last(key), named(given)], _files(root))


def of_unknown_names(rng: random.Random) -> Input:
    root = rng.choice(list(LINES))
    name = misspelt(rng.choice([str(name) for name in composed(root)]), rng)
    if name in composed(root):
        name = f"{name}q"
    return _input([*LINES[root], f"+{name}=1"], [name], _files(root))


def _input(arguments: Sequence[str], culprits: Sequence[str] | None, files: Files | None = None) -> Input:
    return Input(" ".join(arguments), arguments, culprits, files or {})


def _entries(root: str) -> list[tuple[str, object]]:
    return [
        (key, value)
        for key, value in places(composed(root))
        if wrong(value, random.Random(0)) is not None
        and f"{root}.{key}" not in STATED
        and not key.startswith(("hydra", "sites."))
    ]


def _line(root: str, key: str) -> list[str]:
    """The valid command line, without its own value of a setting."""
    command, *rest = LINES[root]
    return [command, *(word for word in rest if word.partition("=")[0] != key)]


def _files(root: str) -> Files:
    return {DUMP: small_dump()} if root == "compare_dump" else {}
