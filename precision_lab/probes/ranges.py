"""The range catalogue: how large values are, and what each number format would do to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from precision_lab.instrument.arrays import is_read_cheaply, to_numpy
from precision_lab.instrument.observation import Columns, rows_of
from precision_lab.numerics.formats import FORMATS, Format, format_named
from precision_lab.numerics.statistics import summarize, summarize_each
from precision_lab.probes.base import Scalar

DEFAULT_FORMATS = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True)
class RangeCatalogue:
    """amax, amin_nonzero, min, max, mean, rms, counts of NaN, inf and zero; per format overflow, underflow, headroom.

    Definitions: `precision_lab.numerics.statistics.summarize`. On the CPU, and on a GPU where an array is small, the
    evaluated buffer is read through NumPy, which is several times faster than MLX reductions there and accumulates in
    float64; of large arrays on a GPU the same numbers come from MLX operations in fp32.
    """

    sites: Sequence[str]
    ports: Sequence[str] = ("out",)
    formats: Sequence[str] = DEFAULT_FORMATS

    def __post_init__(self) -> None:
        for name in self.formats:
            format_named(name)

    def measure(self, x: mx.array) -> Mapping[str, Scalar]:
        formats = [FORMATS[name] for name in self.formats]
        return summarize(to_numpy(x), formats) if is_read_cheaply(x) else _summarize_in_ops(x, formats)

    def measure_each(self, arrays: Sequence[mx.array]) -> Sequence[Mapping[str, Scalar]] | Columns:
        """What `measure` gives of each array; on the CPU as columns, many times faster if the arrays are small."""
        formats = [FORMATS[name] for name in self.formats]
        read = [to_numpy(x) for x in arrays if is_read_cheaply(x)]
        columns = summarize_each(read, formats)
        if mx.default_device().type == mx.DeviceType.cpu:
            return columns
        rows = iter(rows_of(columns))
        return [next(rows) if is_read_cheaply(x) else _summarize_in_ops(x, formats) for x in arrays]


def _summarize_in_ops(x: mx.array, formats: Sequence[Format]) -> dict[str, Scalar]:
    """`summarize` in MLX operations; sums in two stages, rows and then over rows, scaled so that nothing overflows."""
    y = x.astype(mx.float32).reshape(-1, x.shape[-1] if x.ndim else 1)
    if y.size == 0:
        return {**summarize(to_numpy(x), formats)}
    magnitude = mx.abs(y)
    finite = mx.isfinite(y)
    zero = magnitude == 0
    nan = mx.array(float("nan"))
    count = _count(finite)
    some, some_nonzero = count > 0, _count(finite & ~zero) > 0
    amax = mx.max(mx.where(finite, magnitude, 0.0))
    scale = mx.where(amax > 0, amax, 1.0)
    scaled = mx.where(finite, y, 0.0) / scale
    out: dict[str, Scalar] = {
        "amax": mx.where(some, amax, nan),
        "amin_nonzero": mx.where(some_nonzero, mx.min(mx.where(finite & ~zero, magnitude, float("inf"))), nan),
        "min": mx.where(some, mx.min(mx.where(finite, y, float("inf"))), nan),
        "max": mx.where(some, mx.max(mx.where(finite, y, float("-inf"))), nan),
        "mean": mx.where(some, _sum(scaled) / count * scale, nan),
        "rms": mx.where(some, mx.sqrt(_sum(scaled * scaled) / count) * scale, nan),
        "num_nan": _count(mx.isnan(y)),
        "num_inf": _count(mx.isinf(y)),
        "num_zero": _count(zero),
    }
    for f in formats:
        over = magnitude >= f.overflow_threshold if f.threshold_overflows else magnitude > f.overflow_threshold
        under = (magnitude <= f.underflow_threshold) & ~zero
        out[f"overflow_pct_{f.name}"] = _count(over) * (100 / y.size)
        out[f"underflow_pct_{f.name}"] = _count(under) * (100 / y.size)
        out[f"headroom_bits_{f.name}"] = mx.where(some & (amax > 0), math.log2(f.max) - mx.log2(scale), nan)
    return out


def _sum(x: mx.array) -> mx.array:
    return mx.sum(mx.sum(x, axis=-1))


def _count(mask: mx.array) -> mx.array:
    return mx.sum(mx.sum(mask, axis=-1))
