"""Floating-point formats: their range, their spacing, and the thresholds of overflow and underflow.

The formats and their names are those of ml_dtypes. Every constant is derived from `ml_dtypes.finfo`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from precision_lab.errors import InputError, nearest


@dataclass(frozen=True)
class Format:
    """A binary floating-point format with subnormals. Rounding is to nearest, ties to even.

    All its values are exact in float64.
    """

    name: str
    max: float
    smallest_normal: float
    smallest_subnormal: float
    mantissa_bits: int
    """Stored bits of the significand, without the implicit leading one."""
    overflow_threshold: float
    """The midpoint between `max` and the value that would follow it: every |x| above it overflows."""
    threshold_overflows: bool
    """Whether |x| = `overflow_threshold` overflows too; the tie is rounded to the even neighbour."""
    underflow_threshold: float
    """Half of `smallest_subnormal`: a non-zero |x| up to this rounds to zero, the even neighbour."""
    has_inf: bool
    """Whether the format has infinities; without them, overflow gives NaN."""


def _derive(name: str) -> Format:
    info = ml_dtypes.finfo(name)
    largest = float(info.max)
    subnormal = float(info.smallest_subnormal)
    top_spacing = math.ldexp(1.0, math.frexp(largest)[1] - 1 - info.nmant)
    return Format(
        name=name,
        max=largest,
        smallest_normal=float(info.smallest_normal),
        smallest_subnormal=subnormal,
        mantissa_bits=int(info.nmant),
        overflow_threshold=largest + top_spacing / 2,
        # float8_e4m3fn uses its last significand for NaN: its max is even, so the tie rounds to it
        threshold_overflows=largest / top_spacing % 2 == 1,
        underflow_threshold=subnormal / 2,
        has_inf=bool(np.isinf(np.array(np.inf).astype(info.dtype))),
    )


FORMATS: Mapping[str, Format] = MappingProxyType(
    {name: _derive(name) for name in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float32")}
)

REDUCED_FORMATS: tuple[Format, ...] = tuple(f for f in FORMATS.values() if f.name != "float32")
"""The formats narrower than float32, which the range catalogue covers."""


def format_named(name: str) -> Format:
    """The format called `name`. Raises InputError for a name that is not in FORMATS."""
    if name not in FORMATS:
        raise InputError(f"Unknown floating-point format {name!r}. {nearest(name, FORMATS)}")
    return FORMATS[name]


def round_to(x: npt.ArrayLike, fmt: Format | str) -> npt.NDArray[np.float64]:
    """`x` rounded once to `fmt`, ties to even. Overflow gives infinity, or NaN if the format has no infinities.

    A cast with ml_dtypes would round twice, because it converts to float32 first.

    Returns float64 of the shape of x. Raises InputError for an unknown format name.
    """
    fmt = format_named(fmt) if isinstance(fmt, str) else fmt
    exact: npt.NDArray[Any] = np.asarray(x, dtype=np.float64)
    finite = np.isfinite(exact)
    spacing = np.where(finite, ulp(exact, fmt), 1.0)
    rounded = np.rint(exact / spacing) * spacing
    overflowed = np.copysign(np.inf if fmt.has_inf else np.nan, exact)
    rounded = np.where(np.abs(rounded) > fmt.max, overflowed, rounded)
    return np.where(finite, rounded, exact if fmt.has_inf else np.nan)


def ulp(x: npt.ArrayLike, fmt: Format | str) -> npt.NDArray[np.float64]:
    """The unit in the last place of `fmt` at |x|: the distance from |x|, rounded down to a value, to the next one.

    It is `smallest_subnormal` at zero and for subnormals. Above `max` the exponent is treated as unbounded, so that an
    error can be measured where the format overflows. NaN for a non-finite x.

    Returns float64 of the shape of x. Raises InputError for an unknown format name.
    """
    fmt = format_named(fmt) if isinstance(fmt, str) else fmt
    values: npt.NDArray[Any] = np.asarray(x, dtype=np.float64)
    spacing = np.maximum(power_of_two(values) * 2.0**-fmt.mantissa_bits, fmt.smallest_subnormal)
    return np.where(np.isfinite(values), spacing, np.nan)


def power_of_two(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The largest power of two not above |x|: 0 for zero and float64's subnormals, infinity for infinities and NaN."""
    bits = np.ascontiguousarray(x).view(np.uint64) & np.uint64(0x7FF0_0000_0000_0000)
    return bits.view(np.float64).reshape(x.shape)
