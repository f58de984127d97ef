"""The judgement of another program's arrays, operation by operation, as `compare dump=` finds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from precision_lab.numerics.rounding_share import unit


class Judged(NamedTuple):
    """One array of the dump.

    address: its place in the lab. operations: the modules between the foreign arrays before it and itself, in order of
    execution; none if it should be equal to one of them.
    format: the narrowest format of its values. error, explained: the distance from fp32 of the foreign array and of
    rounding, relative L2. share: the error as a multiple of the largest that rounding explains; wrong above 1. tail:
    whether that is the error of the worst values of an activation, rather than that of the whole array. rounded: the
    format with fewer bits that a wrong array is rounded to. fits: the activation function, or
    the norm, that a wrong array fits.
    """

    address: str
    operations: tuple[str, ...]
    format: str
    error: float
    explained: float
    share: float
    tail: bool = False
    rounded: str = ""
    fits: str = ""

    @property
    def wrong(self) -> bool:
        return not self.share <= 1 or bool(self.fits)

    @property
    def local(self) -> bool:
        """Whether a single operation on foreign inputs is judged."""
        return len(self.operations) <= 1

    @property
    def units(self) -> float:
        """The error in units of rounding of the format."""
        return self.error / unit(self.format)


@dataclass(frozen=True)
class Comparison:
    """rows: in order of execution. format: that of most arrays. unknown: names of the dump that the pass has not, with
    the nearest ones. operations, covered: those of the pass, and those whose output the dump holds.
    """

    rows: Sequence[Judged]
    format: str
    unknown: Mapping[str, str]
    operations: int
    covered: int

    @property
    def first_wrong(self) -> int | None:
        """The number of the first row that is wrong."""
        return next((at for at, row in enumerate(self.rows) if row.wrong), None)

    @property
    def wrong(self) -> int:
        """How many rows are wrong."""
        return sum(row.wrong for row in self.rows)
