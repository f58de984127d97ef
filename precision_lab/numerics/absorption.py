"""Absorption in residual adds: updates that are too small to change the stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from precision_lab.errors import InputError
from precision_lab.numerics.formats import Format, format_named, power_of_two, ulp


def absorption_pct(residual: npt.NDArray[Any], update: npt.NDArray[Any], fmt: Format | str) -> float:
    """Percent of the non-zero elements of `update` that leave `residual` unchanged when the sum is rounded to `fmt`.

    An update is absorbed if it is below half the distance from the residual to its neighbour in the update's direction,
    or exactly half if the residual's significand is even (round to nearest, ties to even). At a power of two, the
    neighbour towards zero is half as far away. residual: values of `fmt`; other values are rounded down to one. update:
    any values, same shape. Positions where either is not finite are excluded. NaN if no update remains.

    Raises InputError for different shapes or an unknown format name.
    """
    return absorption_pcts(residual, update, [fmt])[0]


def absorption_pcts(
    residual: npt.NDArray[Any], update: npt.NDArray[Any], formats: Sequence[Format | str]
) -> list[float]:
    """`absorption_pct` for each of the formats; most of the computation is shared."""
    resolved = [format_named(fmt) if isinstance(fmt, str) else fmt for fmt in formats]
    if residual.shape != update.shape:
        raise InputError(f"absorption: residual of shape {residual.shape}, update of {update.shape}; expected the same")
    r, u = residual.astype(np.float64, copy=False).reshape(-1), update.astype(np.float64, copy=False).reshape(-1)
    counted = np.isfinite(r) & np.isfinite(u) & (u != 0)
    if not counted.all():
        r, u = r[counted], u[counted]
    if not u.size:
        return [math.nan] * len(formats)
    size, change = np.abs(r), np.abs(u)
    power = power_of_two(size)
    towards_zero = (size == power) & (np.signbit(u) != np.signbit(r))
    return [100.0 * float(_num_absorbed(size, change, power, towards_zero, fmt)) / u.size for fmt in resolved]


def _num_absorbed(
    size: npt.NDArray[np.float64],
    change: npt.NDArray[np.float64],
    power: npt.NDArray[np.float64],
    towards_zero: npt.NDArray[np.bool_],
    fmt: Format,
) -> int:
    """Number of absorbed updates.

    power: the largest power of two not above `size`; towards_zero: where `size` is that power and the update points
    towards zero.
    """
    half = np.maximum(power * 2.0 ** -(fmt.mantissa_bits + 1), fmt.smallest_subnormal / 2)
    finer_below = towards_zero & (size > fmt.smallest_normal)
    half[finer_below] /= 2
    num_absorbed = int(np.count_nonzero(change < half))
    (ties,) = np.nonzero(change == half)
    if ties.size:
        significand = np.floor(size[ties] / ulp(size[ties], fmt))
        num_absorbed += int(np.count_nonzero((significand % 2 == 0) | finer_below[ties]))
    return num_absorbed
