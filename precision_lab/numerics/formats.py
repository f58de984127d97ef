"""Floating-point formats: their range and spacing, and the thresholds of overflow and underflow.

Formats have the names that ml_dtypes gives them, and every constant is derived from `ml_dtypes.finfo`.
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
    """A binary floating-point format with subnormals, rounded to nearest, ties to even.

    All values are exact in float64.
    """

    name: str
    max: float
    smallest_normal: float
    smallest_subnormal: float
    mantissa_bits: int
    """Stored bits of the significand, without the implicit leading one."""
    overflow_threshold: float
    """The midpoint between `max` and the next value if the range were unbounded: every |x| above it overflows."""
    threshold_overflows: bool
    """Whether |x| = `overflow_threshold` also overflows, as the tie goes to the even neighbour."""
    underflow_threshold: float
    """Half of `smallest_subnormal`: a non-zero |x| <= this rounds to zero (zero is the even neighbour)."""
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
        # float8_e4m3fn uses its last significand for NaN, so its max is even and the tie rounds to it
        threshold_overflows=largest / top_spacing % 2 == 1,
        underflow_threshold=subnormal / 2,
        has_inf=bool(np.isinf(np.array(np.inf).astype(info.dtype))),
    )


FORMATS: Mapping[str, Format] = MappingProxyType(
    {name: _derive(name) for name in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float32")}
)

REDUCED_FORMATS: tuple[Format, ...] = tuple(f for f in FORMATS.values() if f.name != "float32")
"""The formats narrower than float32, which a range catalogue covers."""


def format_named(name: str) -> Format:
    """The format called `name`. Raises InputError for a name that is not in FORMATS."""
    if name not in FORMATS:
        raise InputError(f"Unknown floating-point format {name!r}. {nearest(name, FORMATS)}")
    return FORMATS[name]


def round_to(x: npt.ArrayLike, fmt: Format | str) -> npt.NDArray[np.float64]:
    """Rounds `x` once to `fmt`, ties to even; overflow gives infinity, or NaN if the format has none.

    A cast by ml_dtypes would go through float32 and so round twice. Returns float64 of the shape of x. Raises
    InputError for an unknown format name.
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

    It is `smallest_subnormal` at zero and among the subnormals. Above `max` the exponent is unbounded, so that an error
    stays measurable where the format would overflow. It is NaN for a non-finite x. Returns float64 of the shape of x.
    Raises InputError for an unknown format name.
    """
    fmt = format_named(fmt) if isinstance(fmt, str) else fmt
    values: npt.NDArray[Any] = np.asarray(x, dtype=np.float64)
    spacing = np.maximum(power_of_two(values) * 2.0**-fmt.mantissa_bits, fmt.smallest_subnormal)
    return np.where(np.isfinite(values), spacing, np.nan)


def power_of_two(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The largest power of two not above |x|; 0 for zero and float64's subnormals, infinity for infinities and NaN."""
    bits = np.ascontiguousarray(x).view(np.uint64) & np.uint64(0x7FF0_0000_0000_0000)
    return bits.view(np.float64).reshape(x.shape)
