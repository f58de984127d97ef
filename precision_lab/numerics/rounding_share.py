"""How far an array is from the exact one, and how far rounding in a format could have moved it.

The unit of a format is its largest relative error of one rounding, 2^-24 for float32, 2^-8 for bfloat16.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from precision_lab.numerics.formats import format_named, ulp

MARGIN = 4.0
"""The multiple of measured rounding that is allowed. Another order of the same roundings gives up to twice as much."""

LEAST = {"float32": 8.0, "bfloat16": 1.0, "float16": 1.0}
"""The rounding that is always assumed, in units of the format: that of sums in another order, or of one result."""

_FAINT = 2.0**-12


class Distance(NamedTuple):
    """rel_l2: |x - exact| / |exact|. tail: the 99th percentile of |x - exact| in ulps of the format."""

    rel_l2: float
    tail: float


def unit(fmt: str) -> float:
    """The largest relative error of one rounding in a format."""
    return 2.0 ** -(format_named(fmt).mantissa_bits + 1)


def distance(x: npt.NDArray[Any], exact: npt.NDArray[Any], fmt: str) -> Distance:
    """The distance of `x` from `exact`, arrays of equal shape, where `exact` is finite.

    Infinite where `x` is not finite although `exact` is; zero for two arrays that are equal. Values below 2^-12 of the
    rms count as that large in the tail.
    """
    kept = np.isfinite(exact)
    y, reference = x[kept].astype(np.float64), exact[kept].astype(np.float64)
    if not y.size or np.array_equal(y, reference):
        return Distance(0.0, 0.0)
    if not np.isfinite(y).all():
        return Distance(math.inf, math.inf)
    error, norm = np.abs(y - reference), float(np.linalg.norm(reference))
    rel_l2 = float(np.linalg.norm(error)) / norm if norm else math.inf
    size = np.maximum(np.abs(reference), _FAINT * norm / math.sqrt(y.size))
    return Distance(rel_l2, float(np.quantile(error / ulp(size, fmt), 0.99)))
