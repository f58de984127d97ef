"""The range catalogue: the magnitudes of values, and the losses that each number format would cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from precision_lab.instrument.arrays import to_numpy
from precision_lab.instrument.observation import Columns, rows_of
from precision_lab.numerics.formats import FORMATS, Format, format_named
from precision_lab.numerics.statistics import summarize, summarize_each
from precision_lab.probes.base import Scalar
from precision_lab.probes.range_kernel import PendingRanges, pending_ranges, read_ranges
from precision_lab.record.columns import Column, count, lost

DEFAULT_FORMATS = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True)
class RangeCatalogue:
    """amax, amin_nonzero, min, max, mean, rms, counts of NaN, inf and zero; per format overflow, underflow, headroom.

    Definitions: `precision_lab.numerics.statistics.summarize`. On the CPU, NumPy reads the evaluated buffer, which is
    several times faster than MLX reductions. On a GPU, a kernel launched with the evaluation of an array reads it once
    on the device. All statistics are identical except mean and rms, whose sums round: they differ by at most 1e-12 of
    the rms on CUDA, 1e-7 on Metal (not yet run there), and 1e-5 without a kernel, where MLX operations sum in fp32.
    Integers are converted to float32 on a GPU and to float64 on the CPU.
    """

    sites: Sequence[str]
    ports: Sequence[str] = ("out",)
    formats: Sequence[str] = DEFAULT_FORMATS

    def __post_init__(self) -> None:
        for name in self.formats:
            format_named(name)

    @property
    def adds(self) -> Sequence[Column]:
        columns = [
            Column("amax", meaning="largest magnitude"),
            Column("amin_nonzero", meaning="smallest magnitude that is not zero"),
            Column("min", meaning="smallest value"),
            Column("max", meaning="largest value"),
            Column("mean", meaning="mean of the finite values"),
            Column("rms", meaning="root mean square of the finite values"),
            count("num_nan", "elements that are NaN, exact"),
            count("num_inf", "elements that are infinite, exact"),
            count("num_zero", "elements that are zero, exact"),
        ]
        for name in self.formats:
            columns += [
                *lost(name),
                Column(f"headroom_bits_{name}", unit="bits", meaning=f"log2(max of {name} / amax); higher is better"),
            ]
        return columns

    @property
    def is_lazy(self) -> bool:
        """Whether statistics are launched on the device, which is the case on every device except the CPU."""
        return mx.default_device().type != mx.DeviceType.cpu

    def measure(self, x: mx.array) -> Mapping[str, Scalar]:
        if self.is_lazy:
            return rows_of(self.measure_each([x]))[0]
        return summarize(to_numpy(x), self._formats)

    def measure_each(self, arrays: Sequence[mx.array]) -> Columns:
        """`measure` of each array, as columns. This is many times faster for small arrays."""
        if self.is_lazy:
            return self.columns([self.prepare(arrays)])
        return summarize_each([to_numpy(x) for x in arrays], self._formats)

    def prepare(self, arrays: Sequence[mx.array]) -> PendingRanges:
        return pending_ranges(arrays, self._formats)

    def columns(self, pending: Sequence[PendingRanges]) -> Columns:
        return read_ranges(pending, self._formats)

    @property
    def _formats(self) -> tuple[Format, ...]:
        return tuple(FORMATS[name] for name in self.formats)
