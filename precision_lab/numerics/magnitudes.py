"""The magnitudes at which formats overflow and underflow, as bit patterns.

Magnitudes are compared as integers: with the sign bit cleared, bit patterns of IEEE 754 numbers sort in the order of
the numbers, with infinity above every finite number and NaN above infinity.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from precision_lab.numerics.formats import Format


class Limits(NamedTuple):
    """Bit patterns of magnitudes in one dtype, as unsigned integers of the width of its elements."""

    sign_cleared: np.unsignedinteger[Any]
    infinity: np.unsignedinteger[Any]
    overflow: tuple[np.unsignedinteger[Any], ...]
    """For each format, the smallest magnitude that overflows; at most infinity."""
    underflow: tuple[np.unsignedinteger[Any], ...]
    """For each format, the largest magnitude that becomes zero."""


@lru_cache
def magnitude_limits(formats: tuple[Format, ...], dtype: np.dtype[Any]) -> Limits:
    """The limits that magnitudes of float32 or float64 elements are compared with."""
    bits = np.dtype(f"u{dtype.itemsize}")
    infinity = dtype.type(np.inf).view(bits)
    overflow, underflow = [], []
    for fmt in formats:
        # exact in dtype, except for float32's own limits in float32, which round to infinity and zero as required
        with np.errstate(over="ignore", under="ignore"):
            first, last = dtype.type(fmt.overflow_threshold), dtype.type(fmt.underflow_threshold)
        assert float(first) in (fmt.overflow_threshold, math.inf)
        assert float(last) in (fmt.underflow_threshold, 0.0)
        if not fmt.threshold_overflows:
            first = np.nextafter(first, dtype.type(math.inf))
        overflow.append(first.view(bits))
        underflow.append(last.view(bits))
    return Limits(infinity.dtype.type(np.iinfo(bits).max >> 1), infinity, tuple(overflow), tuple(underflow))
