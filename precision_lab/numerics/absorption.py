"""What a residual add loses: updates too small to move the stream they are added to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from precision_lab.errors import InputError
from precision_lab.numerics.formats import Format, format_named, ulp


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
    r, u = r[counted], u[counted]
    if not u.size:
        return math.nan
    spacing = ulp(r, fmt)
    significand = np.floor(np.abs(r) / spacing)
    power_of_two = np.abs(np.frexp(r)[0]) == 0.5
    finer_below = power_of_two & (np.abs(r) > fmt.smallest_normal) & (np.sign(u) != np.sign(r))
    half = np.where(finer_below, spacing / 4, spacing / 2)
    even = (significand % 2 == 0) | finer_below
    magnitude = np.abs(u)
    absorbed = (magnitude < half) | ((magnitude == half) & even)
    return 100.0 * float(np.count_nonzero(absorbed)) / u.size
