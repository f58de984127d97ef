"""Refuses overrides of settings that a command composes with the model and then would ignore."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from precision_lab.errors import InputError, nearest

OF_CASES = ("sampler", "image", "prompts", "seeds", "learning", "drift", "pinned")
"""What the file of a model sets beside the model and the groups of its sites."""


def check_used(command: Sequence[str], used: Sequence[str], unused: Iterable[str], hint: str = "") -> None:
    """Raises InputError for an override of a setting in `unused`. hint: what would give it a use, by its name."""
    refused = set(unused)
    for argument in command[1:]:
        key = argument.lstrip("+~").partition("=")[0]
        if "=" in argument and key.partition(".")[0] in refused:
            raise InputError(f"{command[0]} has no use for {key}{hint}. {nearest(key, used)}")
