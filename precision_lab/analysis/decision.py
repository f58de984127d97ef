"""The decision table: what the interval of a ratio says about a claim.

The interval [lo, hi] is that of the ratio subject / comparison. Ratios from `lower` = 1 / (1 + tolerance) to `upper` =
1 + tolerance make no difference. The tolerance is the larger of two things with different meanings:

- the margin, which the claim states: the smallest difference that matters. The measurement resolves it, so "at most the
  margin" is evidence;
- the noise floor, which is measured: what two variants differ by that are the same function. Below it nothing is
  resolved, so it is evidence of nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum

SUPPORTED, REFUTED, INCONCLUSIVE = "supported", "refuted", "inconclusive"


class Position(Enum):
    """Where the whole interval lies."""

    BELOW = "hi < lower: less, by more than the tolerance"
    INTO_FROM_BELOW = "lo < lower <= hi <= upper: less or no difference"
    WITHIN = "lower <= lo, hi <= upper: no difference"
    OUT_ABOVE = "lower <= lo <= upper < hi: no difference or more"
    ABOVE = "upper < lo: more, by more than the tolerance"
    ACROSS = "lo < lower, upper < hi: anything"

    @classmethod
    def of(cls, lo: float, hi: float, tolerance: float) -> Position:
        """The position of [lo, hi]; an end on a limit is within the tolerance."""
        assert lo <= hi
        upper = 1 + tolerance
        lower = 1 / upper
        if hi < lower:
            return cls.BELOW
        if lo > upper:
            return cls.ABOVE
        if lo >= lower:
            return cls.WITHIN if hi <= upper else cls.OUT_ABOVE
        return cls.INTO_FROM_BELOW if hi <= upper else cls.ACROSS


_NOT_BY_THE_MARGIN = "refuted where the tolerance is the margin, inconclusive where it is the noise floor"

TABLE: Mapping[str, Mapping[Position, str]] = {
    "larger": {
        Position.BELOW: REFUTED,  # it is less
        Position.INTO_FROM_BELOW: _NOT_BY_THE_MARGIN,  # it is at most larger by what does not matter
        Position.WITHIN: _NOT_BY_THE_MARGIN,  # as large, or larger by what does not matter
        Position.OUT_ABOVE: INCONCLUSIVE,  # it may be larger by enough, or not
        Position.ABOVE: SUPPORTED,
        Position.ACROSS: INCONCLUSIVE,
    },
    "smaller": {
        Position.BELOW: SUPPORTED,
        Position.INTO_FROM_BELOW: INCONCLUSIVE,  # it may be smaller by enough, or not
        Position.WITHIN: _NOT_BY_THE_MARGIN,  # as small, or smaller by what does not matter
        Position.OUT_ABOVE: _NOT_BY_THE_MARGIN,  # it is at most smaller by what does not matter
        Position.ABOVE: REFUTED,  # it is more
        Position.ACROSS: INCONCLUSIVE,
    },
    "equal": {
        Position.BELOW: REFUTED,
        Position.INTO_FROM_BELOW: INCONCLUSIVE,  # it may be less
        Position.WITHIN: SUPPORTED,  # being within the tolerance is the claim
        Position.OUT_ABOVE: INCONCLUSIVE,  # it may be more
        Position.ABOVE: REFUTED,
        Position.ACROSS: INCONCLUSIVE,
    },
    "not_larger": {
        Position.BELOW: SUPPORTED,  # less is not more
        Position.INTO_FROM_BELOW: SUPPORTED,  # it is not more by more than the tolerance, which is the claim
        Position.WITHIN: SUPPORTED,
        Position.OUT_ABOVE: INCONCLUSIVE,  # it may be more
        Position.ABOVE: REFUTED,
        Position.ACROSS: INCONCLUSIVE,
    },
    "not_smaller": {
        Position.BELOW: REFUTED,
        Position.INTO_FROM_BELOW: INCONCLUSIVE,  # it may be less
        Position.WITHIN: SUPPORTED,
        Position.OUT_ABOVE: SUPPORTED,  # it is not less by more than the tolerance, which is the claim
        Position.ABOVE: SUPPORTED,  # more is not less
        Position.ACROSS: INCONCLUSIVE,
    },
}
"""Relation and position -> verdict. `larger` and `smaller` are refuted only by evidence against them."""


def decide(relation: str, lo: float, hi: float, margin: float, floor: float = math.nan) -> str:
    """supported, refuted or inconclusive, by the interval [lo, hi] of a ratio.

    margin: the relative difference that the claim allows; floor: the noise floor, NaN where none was measured.
    """
    by_noise = floor > margin
    verdict = TABLE[relation][Position.of(lo, hi, floor if by_noise else margin)]
    if verdict == _NOT_BY_THE_MARGIN:
        return INCONCLUSIVE if by_noise else REFUTED
    return verdict
