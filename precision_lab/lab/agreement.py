"""How what arrived of a change agrees with what was meant, over the weights of a linear.

Sums are taken in two stages: over rows in fp32, relative to the largest magnitude, then over the rows in float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np


class Agreement(NamedTuple):
    """NaN where undefined: correlation without variance on a side, gain and relative_error for a change of zero.

    correlation: Pearson's. gain: sum(arrived meant) / sum(meant^2), 1 where it arrives in full on average.
    relative_error: rms(arrived - meant) / rms(meant).
    """

    correlation: float
    gain: float
    relative_error: float


def agreement(arrived: mx.array, meant: mx.array) -> Agreement:
    """arrived, meant: (outputs, channels), fp32, finite."""
    peaks = [_scalar(mx.abs(each).max()) for each in (arrived, meant)]
    if peaks[1] == 0:
        return Agreement(math.nan, math.nan, math.nan)
    a, b = (each / (peak or 1) for each, peak in zip((arrived, meant), peaks, strict=True))
    ratio = peaks[0] / peaks[1]
    square = total(mx.square(b))
    difference = arrived / peaks[1] - b
    return Agreement(
        correlation(arrived, meant), ratio * total(a * b) / square, math.sqrt(total(mx.square(difference)) / square)
    )


def correlation(arrived: mx.array, meant: mx.array, chosen: mx.array | None = None) -> float:
    """Pearson's correlation over the `chosen` weights, by default all; NaN where a side has the same value at all."""
    where = mx.ones(meant.shape, dtype=mx.bool_) if chosen is None else chosen
    number = total(where)
    if number < 2:
        return math.nan
    sides = []
    for each in (arrived, meant):
        low = _scalar(mx.where(where, each, mx.inf).min())
        high = _scalar(mx.where(where, each, -mx.inf).max())
        if low == high:
            return math.nan
        scaled = mx.where(where, each / max(abs(low), abs(high)), 0)
        sides.append(mx.where(where, scaled - total(scaled) / number, 0))
    a, b = sides
    return total(a * b) / math.sqrt(total(mx.square(a)) * total(mx.square(b)))


def rms(x: mx.array) -> float:
    """The root mean square of (outputs, channels)."""
    peak = _scalar(mx.abs(x).max())
    return peak * math.sqrt(total(mx.square(x / peak)) / x.size) if peak else 0.0


def total(x: mx.array) -> float:
    """The sum of (outputs, channels): counts exactly, numbers in two stages."""
    if x.dtype == mx.bool_:
        return float(np.array(x.astype(mx.int32).sum(axis=1), dtype=np.float64).sum())
    return float(np.array(x.sum(axis=1), dtype=np.float64).sum())


def _scalar(x: mx.array) -> float:
    value: Any = x.item()
    return float(value)
