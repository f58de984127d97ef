"""A recipe as plain data: the format in which each linear stores its weight, and what a translation cannot keep.

Programs write such recipes differently (`recipes.dialect`): by module path, as rules, or as a list of exceptions. Each
of them is read into this form and written from it, so that no two need to know each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from precision_lab.numerics.packing import Quantization
from precision_lab.recipes.naming import Naming
from precision_lab.record.patterns import patterns_of

SCALES = ("none", "tensor", "channel")


class Float8(NamedTuple):
    """A weight in float8 e4m3. scale: one of SCALES. inputs: whether inputs are float8 too, with one scale a token."""

    scale: str
    inputs: bool

    def __str__(self) -> str:
        inputs = ", inputs with one scale a token" if self.inputs else ""
        return f"float8 e4m3, {'no scale' if self.scale == 'none' else f'one scale a {self.scale}'}{inputs}"


Format = Quantization | Float8
Recipe = Mapping[str, Format]
"""The format of linears by their path in the component that a recipe is about; all others are kept as stored."""


@dataclass(frozen=True)
class Target:
    """The component of a model that a recipe is about.

    - model: its name in messages. naming: how the program of the dialect names its modules.
    - channels: the input channels of every linear, by path, in order of definition.
    - embeddings: paths of modules that could be packed and are no linears.
    - others: paths of all further modules.
    """

    model: str
    channels: Mapping[str, int]
    naming: Naming = field(default_factory=Naming)
    embeddings: Sequence[str] = ()
    others: Sequence[str] = ()

    def patterns(self, paths: Iterable[str]) -> list[str]:
        """Short patterns that name, among all modules, exactly those at `paths`."""
        everything = [("", path) for path in (*self.channels, *self.embeddings, *self.others)]
        return patterns_of([("", path) for path in paths], everything)


class Loss(NamedTuple):
    """Why some linears differ in a translation. paths: those; empty if it concerns none in particular.

    kept: whether their weights stay as stored there; otherwise they have a format that is near theirs.
    """

    reason: str
    paths: tuple[str, ...]
    kept: bool = True

    def line(self, target: Target) -> str:
        """The loss in one line, with patterns for the paths."""
        verb = "kept as stored" if self.kept else "changed"
        if not self.paths:
            return self.reason
        return f"{verb}: {', '.join(target.patterns(self.paths))} ({len(self.paths)} linears): {self.reason}"


class Losses:
    """Collects losses; those with the same reason are one."""

    def __init__(self) -> None:
        self._paths: dict[tuple[str, bool], list[str]] = {}

    def add(self, reason: str, *paths: str, kept: bool = True) -> None:
        self._paths.setdefault((reason, kept), []).extend(paths)

    def all(self) -> list[Loss]:
        return [Loss(reason, tuple(paths), kept) for (reason, kept), paths in self._paths.items()]
