"""A coding of a weight that its writer padded with zeros, to whole tiles of a kernel."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from precision_lab.model.codings.base import Arrays, Coding, Inputs


@dataclass(frozen=True)
class Padded(Coding):
    """The arrays of `coding` for a weight of the shape `stored`, of which the first rows and channels are `shape`."""

    coding: Coding
    shape: tuple[int, int]
    stored: tuple[int, int]

    name = "padded"

    def encode(self, weight: mx.array) -> dict[str, mx.array]:
        return self.coding.encode(_padded(weight, (0, 1), self.stored))

    def decode(self, arrays: Arrays) -> mx.array:
        outputs, channels = self.shape
        return self.coding.decode(arrays)[:outputs, :channels]

    def product(self, arrays: Arrays, x: mx.array, inputs: Inputs | None = None) -> mx.array:
        return self.coding.product(arrays, _padded(x, (-1,), self.stored[1:]), inputs)[..., : self.shape[0]]


def _padded(x: mx.array, axes: tuple[int, ...], sizes: tuple[int, ...]) -> mx.array:
    widths = [(0, 0)] * x.ndim
    for axis, size in zip(axes, sizes, strict=True):
        widths[axis] = 0, size - x.shape[axis]
    return mx.pad(x, widths)
