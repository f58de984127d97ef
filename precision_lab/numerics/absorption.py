"""What a residual add loses: updates too small to move the stream they are added to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from precision_lab.errors import InputError
from precision_lab.numerics.formats import Format, format_named, power_of_two, ulp


def absorption_pct(residual: npt.NDArray[Any], update: npt.NDArray[Any], fmt: Format | str) -> float:
    """Percent of the non-zero elements of `update` that leave `residual` as it is when the sum is rounded to `fmt`.

    An update is absorbed below half the distance from the residual to its neighbour in the update's direction, and at
    exactly half if the residual's significand is even (round to nearest, ties to even). Below a power of two the
    neighbour towards zero is half as far. residual: values of `fmt`, others are rounded down to one; update: any
    values, same shape. Positions where either is not finite do not count. NaN if no update is left.

    Raises InputError for different shapes or an unknown format name.
    """
    fmt = format_named(fmt) if isinstance(fmt, str) else fmt
    if residual.shape != update.shape:
        raise InputError(f"absorption: residual of shape {residual.shape}, update of {update.shape}; expected the same")
    r, u = residual.astype(np.float64), update.astype(np.float64)
    counted = np.isfinite(r) & np.isfinite(u) & (u != 0)
    if not counted.all():
        r, u = r[counted], u[counted]
    if not u.size:
        return math.nan
    size, change = np.abs(r), np.abs(u)
    half = ulp(size, fmt)
    half /= 2
    finer_below = (size == power_of_two(size)) & (size > fmt.smallest_normal) & (np.signbit(u) != np.signbit(r))
    half[finer_below] /= 2
    num_absorbed = np.count_nonzero(change < half)
    (ties,) = np.nonzero((change == half).reshape(-1))
    if ties.size:
        significand = np.floor(size.reshape(-1)[ties] / ulp(size.reshape(-1)[ties], fmt))
        num_absorbed += np.count_nonzero((significand % 2 == 0) | finer_below.reshape(-1)[ties])
    return 100.0 * float(num_absorbed) / u.size
