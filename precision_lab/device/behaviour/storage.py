"""The three formats that MLX computes in: their width, their range, and exact rounding to them in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Storage:
    """A binary format with subnormals and infinities; all its values are exact in float64."""

    name: str
    bits: int
    """Significant bits, including the implicit leading one."""
    max: float
    smallest_normal: float
    smallest_subnormal: float

    @property
    def overflow(self) -> float:
        """The smallest magnitude that rounds to infinity: halfway from `max` to the value that would follow it."""
        return self.max + float(self.ulp(self.max)) / 2

    def ulp(self, x: npt.ArrayLike) -> Array:
        """The spacing of the format above |x|, after |x| is rounded down to a value of the format; shape of x."""
        _, exponent = np.frexp(np.abs(np.asarray(x, dtype=np.float64)))
        return np.maximum(np.ldexp(1.0, exponent - self.bits), self.smallest_subnormal)

    def round(self, x: npt.ArrayLike) -> Array:
        """Rounds x to nearest, ties to even (IEEE 754). Overflow gives infinity; NaN and infinities are unchanged."""
        x = np.asarray(x, dtype=np.float64)
        finite = np.where(np.isfinite(x), x, 0.0)
        spacing = self.ulp(finite)
        rounded = np.rint(finite / spacing) * spacing
        rounded = np.where(np.abs(rounded) > self.max, np.copysign(np.inf, rounded), rounded)
        return np.where(np.isfinite(x), rounded, x)

    def holds(self, x: npt.ArrayLike) -> bool:
        """Whether every finite x is a value of the format."""
        return bool(np.array_equal(self.round(x), np.asarray(x, dtype=np.float64), equal_nan=True))


def _derive(name: str) -> Storage:
    info: Any = ml_dtypes.finfo(name)
    return Storage(
        name, int(info.nmant) + 1, float(info.max), float(info.smallest_normal), float(info.smallest_subnormal)
    )


FLOAT32, BFLOAT16, FLOAT16 = STORAGES = tuple(_derive(name) for name in ("float32", "bfloat16", "float16"))


def width_name(bits: float) -> str:
    """The name of a measured width: the format whose significand has about `bits` bits."""
    known = {8: "bfloat16", 11: "float16 or TF32", 24: "float32"}
    if bits > 24:
        return "wider than float32"
    return known.get(round(bits), f"{bits:.3g} bits")
