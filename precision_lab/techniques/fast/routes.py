"""From how many rows on packed weights are decoded before a product: stated, or measured on this device.

One H200 (MLX 0.32.4): MLX's product of packed weights takes 1.2 times as long as a dense one of 64 rows and 4 times as
long with 4,160 rows; decoding first takes 1.9 times and 1.1 times. Other devices differ, so the point where the routes
meet is measured where the technique is applied, for every shape and packing, and the manifest records it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter

import mlx.core as mx

from precision_lab.model.layers import on_cpu
from precision_lab.numerics.packing import Quantization
from precision_lab.techniques.fast.decoding import decoded, packed_product
from precision_lab.techniques.fast.matrices import Arrays

ROWS = (16, 64, 256, 1024, 4096)
"""The numbers of rows that are measured: text and image tokens of common sizes."""
_REPEATS = 5
NEVER = 1 << 62
"""More rows than there are: the packed product is faster at all of ROWS."""


class Routes:
    """The number of rows from which weights are decoded, by packing and shape.

    decode_from: that number for all weights, or None to measure it. A product of packed weights that MLX does not have,
    or computes wrongly, is decoded in any case: on the CPU, with a scale a tensor, and where a row is a single group
    (`model.quantized`).
    """

    def __init__(self, decode_from: int | None = None):
        self._stated = decode_from
        self.chosen: dict[str, int] = {}
        """What was chosen, by "outputs x channels, packing"."""

    def __call__(self, quantization: Quantization, arrays: Arrays) -> int:
        outputs, groups = arrays[1].shape
        if on_cpu() or quantization.tensor_scale or groups == 1:
            return 0
        if self._stated is not None:
            return self._stated
        key = f"{outputs} x {groups * quantization.group_size}, {quantization}"
        if key not in self.chosen:
            self.chosen[key] = measured(quantization, arrays)
        return self.chosen[key]


def measured(
    quantization: Quantization, arrays: Arrays, seconds: Callable[[Callable[[], mx.array]], float] | None = None
) -> int:
    """The least of ROWS from which on decoding is not slower, at it and at all that follow; NEVER if at none.

    seconds: times a function that returns an unevaluated array; by default the best of several evaluations.
    """
    seconds = seconds or _seconds
    channels = arrays[1].shape[1] * quantization.group_size
    dtype = arrays[1].dtype if mx.issubdtype(arrays[1].dtype, mx.floating) else mx.bfloat16
    chosen = NEVER
    for rows in reversed(ROWS):
        x = mx.ones((rows, channels), dtype)
        mx.eval(x)

        def dense(x: mx.array = x) -> mx.array:
            return x @ decoded(quantization, arrays, dtype).T

        if seconds(dense) > seconds(partial(packed_product, x, quantization, arrays)):
            break
        chosen = rows
    return chosen


def _seconds(product: Callable[[], mx.array]) -> float:
    best = float("inf")
    for _ in range(_REPEATS):
        start = perf_counter()
        mx.eval(product())
        best = min(best, perf_counter() - start)
    return best
