"""Candidates: techniques whose sites are left open, so that a search can try them at any of them.

A candidate is the node of a technique in which the text SITES takes the place of its patterns
(`conf/candidate/*.yaml`). Filled with patterns, the node is that of a technique in `conf/technique`, and whatever a
search chooses is a recipe that runs by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from precision_lab.errors import InputError
from precision_lab.lab.values import NAMED, is_name
from precision_lab.techniques.base import Technique

SITES = "SITES"
"""Where the patterns of a candidate belong in its node."""

Make = Callable[[str, Mapping[str, Any]], Technique]
"""Makes the technique of a name and its node; importable by name, so that another process can call it."""


@dataclass(frozen=True)
class Candidate:
    """A technique to be tried at one group of sites after another.

    template: the plain values of its node. make: builds a technique from the node when it is filled.
    """

    name: str
    template: Mapping[str, Any] = field(hash=False)
    make: Make = field(repr=False)

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise InputError(f"candidate name {self.name!r}: expected {NAMED}")
        if not _holds(self.template):
            raise InputError(
                f"candidate.{self.name}: nothing in it is {SITES}, which takes the place of its patterns of sites"
            )

    def node(self, patterns: Sequence[str]) -> dict[str, Any]:
        """The node of the technique at these patterns of sites, as `conf/technique` holds it."""
        filled: dict[str, Any] = _filled(self.template, list(patterns))
        return filled

    def technique(self, patterns: Sequence[str]) -> Technique:
        """The technique at these patterns of sites. Raises InputError for a node that describes none."""
        return self.make(self.name, self.node(patterns))


def _holds(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds, value.values()))
    return any(map(_holds, value)) if isinstance(value, list | tuple) else value == SITES


def _filled(value: Any, patterns: list[str]) -> Any:
    """`value` with the patterns in place of SITES; in a list, they are some of its entries."""
    if isinstance(value, Mapping):
        return {key: _filled(entry, patterns) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [entry for each in value for entry in (patterns if each == SITES else [_filled(each, patterns)])]
    return list(patterns) if value == SITES else value
