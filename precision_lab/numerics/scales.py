"""Scales that are powers of two: one for all blocks or one by block, what they divide, and the smallest that suffices.

With a power of two, a floating-point result is the same but for its exponent until it leaves the range of the format.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import frexp

import numpy as np
import numpy.typing as npt

from precision_lab.errors import InputError
from precision_lab.numerics.formats import Format

PerBlock = float | Mapping[int, float]
"""One scale for all blocks, or {first block: scale}, where each scale is valid up to the next entry.

Blocks are counted from the front. A shallower model uses the scales of its own blocks; a deeper one repeats the last.
"""


@dataclass(frozen=True)
class Division:
    """A scale and what it divides: the numbers that the modules named by the patterns `places` compute.

    They are those that the format of the computation must hold. A module may leave others: one that restores its result
    in fp32 computes the divided number first.
    """

    by: PerBlock
    places: tuple[str, ...]


def scale_at(table: PerBlock, block: int | None, where: str) -> float:
    """The scale for a block; None is outside of blocks. Raises InputError if there is none or it is no power of two."""
    if isinstance(table, Mapping):
        starts = sorted(table)
        index = bisect_right(starts, -1 if block is None else block) - 1
        if index < 0:
            raise InputError(f"{where}: no scale for its block in {dict(table)}, expected one from block 0 on")
        value = table[starts[index]]
    else:
        value = table
    if not (isinstance(value, int | float) and value > 0 and frexp(value)[0] == 0.5):
        raise InputError(
            f"{where}: scale {value!r}, expected a power of two like 8 or 0.25, since others are not exact"
        )
    return value


def table_of(scales: Sequence[float]) -> PerBlock:
    """The scales of the blocks 0, 1, ... as a table; a single number if all are equal."""
    starts = {at: scale for at, scale in enumerate(scales) if at == 0 or scale != scales[at - 1]}
    return starts[0] if len(starts) == 1 else starts


def smallest_scale(amax: npt.ArrayLike, fmt: Format, margin_bits: float, least: float = 1.0) -> npt.NDArray[np.float64]:
    """The smallest power of two s >= least with amax / s <= fmt.max * 2^-margin_bits; amax: finite magnitudes.

    By default it is not below 1: a floating-point number gains no precision from a larger exponent, and what is small
    already keeps its scale. Where small numbers are to leave the subnormal ones, least is 0; of an amax of 0, s is then
    1. Returns float64 of the shape of amax.
    """
    needed = np.asarray(amax, dtype=np.float64) / (fmt.max * 2.0**-margin_bits)
    significand, exponent = np.frexp(needed)
    return np.maximum(np.ldexp(1.0, exponent - (significand == 0.5)), least)


def headroom_bits(amax: npt.ArrayLike, fmt: Format) -> npt.NDArray[np.float64]:
    """log2(fmt.max / amax), higher is better: infinite for 0, and negative beyond the range of the format."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log2(fmt.max) - np.log2(np.asarray(amax, dtype=np.float64)))


def overflows(amax: npt.ArrayLike, fmt: Format) -> npt.NDArray[np.bool_]:
    """Whether a magnitude rounds to infinity or NaN in a format."""
    magnitude = np.asarray(amax, dtype=np.float64)
    return (magnitude >= fmt.overflow_threshold) if fmt.threshold_overflows else (magnitude > fmt.overflow_threshold)
