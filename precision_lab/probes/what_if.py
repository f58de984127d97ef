"""What-if analysis: the loss if an activation were stored in other formats, including MLX's quantisation modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from precision_lab.instrument.arrays import to_numpy
from precision_lab.numerics.group_formats import DEFAULT_GROUP_FORMATS
from precision_lab.numerics.what_if import any_format, what_if
from precision_lab.probes.base import Scalar
from precision_lab.probes.ranges import DEFAULT_FORMATS
from precision_lab.record.columns import Column, lost


@dataclass(frozen=True)
class WhatIf:
    """`overflow_pct_<f>`, `underflow_pct_<f>` and `sqnr_db_<f>` for a round trip through each format.

    Definitions: `precision_lab.numerics.what_if.what_if`. formats: names from ml_dtypes, mxfp8, mxfp4, nvfp4, and
    affine formats such as affine4 or affine8_g32. Evaluated in NumPy on every device.
    """

    sites: Sequence[str]
    ports: Sequence[str] = ("out",)
    formats: Sequence[str] = (*DEFAULT_FORMATS, *DEFAULT_GROUP_FORMATS)

    def __post_init__(self) -> None:
        for name in self.formats:
            any_format(name)

    @property
    def adds(self) -> Sequence[Column]:
        return [
            column
            for name in self.formats
            for column in (
                *lost(name),
                Column(f"sqnr_db_{name}", unit="dB", meaning=f"signal to noise after a round trip through {name}"),
            )
        ]

    def measure(self, x: mx.array) -> Mapping[str, Scalar]:
        return self.measure_each([x])[0]

    def measure_each(self, arrays: Sequence[mx.array]) -> Sequence[Mapping[str, Scalar]]:
        """`measure` of each array. Small arrays are measured together, which is several times faster."""
        return what_if([to_numpy(x) for x in arrays], [any_format(name) for name in self.formats])
