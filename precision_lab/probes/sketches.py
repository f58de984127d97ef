"""Sketches: eight projections of each array, which allow its distance to that of another run to be estimated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import numpy as np

from precision_lab.instrument.arrays import is_read_cheaply, to_numpy
from precision_lab.numerics.sketch import (
    NUM_PROJECTIONS,
    SKETCH_COLUMNS,
    column_signs,
    matrix_shape,
    row_signs,
    sketch_each,
)
from precision_lab.probes.base import Scalar


@dataclass(frozen=True)
class Sketches:
    """num_nonfinite, rms and sketch_0 .. sketch_7; all but the first are NaN if an element is not finite.

    Definitions: `precision_lab.numerics.sketch`. Evaluated in float64 by NumPy on the CPU, and for small arrays on a
    GPU. For large arrays on a GPU, MLX operations in fp32 are used; the two agree within 1e-5 of the array's norm.
    """

    sites: Sequence[str]
    ports: Sequence[str] = ("out",)

    def measure(self, x: mx.array) -> Mapping[str, Scalar]:
        return self.measure_each([x])[0]

    def measure_each(self, arrays: Sequence[mx.array]) -> Sequence[Mapping[str, Scalar]]:
        """`measure` of each array. Small arrays are measured together, which is several times faster."""
        sketches = sketch_each([to_numpy(x) for x in arrays if is_read_cheaply(x)])
        read = iter([_named(s.num_nonfinite, [s.rms, *s.projections.tolist()]) for s in sketches])
        lazy = [sketch_in_ops(x) for x in arrays if not is_read_cheaply(x)]
        mx.eval(lazy)
        reduced = iter([_named(int(count), np.array(numbers).tolist()) for numbers, count in lazy])
        return [next(read if is_read_cheaply(x) else reduced) for x in arrays]


def _named(num_nonfinite: int, values: Sequence[float]) -> dict[str, Scalar]:
    return {"num_nonfinite": num_nonfinite, **dict(zip(("rms", *SKETCH_COLUMNS), values, strict=True))}


def sketch_in_ops(x: mx.array) -> tuple[mx.array, mx.array]:
    """rms and the eight projections, (9,) fp32, and the number of non-finite elements, as lazy MLX arrays.

    Sums run in two stages, first along rows and then over them, scaled by the largest magnitude so that no square
    overflows.
    """
    rows, cols = matrix_shape(x.shape)
    y = x.astype(mx.float32).reshape(rows, cols)
    num_nonfinite = mx.sum(mx.sum(~mx.isfinite(y), axis=-1))
    if x.size == 0:
        return mx.zeros(1 + NUM_PROJECTIONS), num_nonfinite
    amax = mx.max(mx.abs(y))
    scale = mx.where(amax > 0, amax, 1.0)
    scaled = y / scale
    a, b = _on_device(rows, cols)
    projections = mx.sum((scaled @ b) * a, axis=0)
    rms = mx.sqrt(mx.sum(mx.sum(scaled * scaled, axis=-1)) / x.size)
    numbers = mx.concatenate([rms[None], projections]) * scale
    return mx.where(num_nonfinite == 0, numbers, float("nan")), num_nonfinite


@lru_cache(maxsize=64)
def _on_device(rows: int, cols: int) -> tuple[mx.array, mx.array]:
    """The signs of the rows, (rows, 8), and of the columns, (cols, 8), as fp32 on the device."""
    return mx.array(row_signs(rows).T.astype(np.float32)), mx.array(column_signs(cols).T.astype(np.float32))
