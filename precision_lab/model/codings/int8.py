"""Signed 8-bit codes: a weight with a scale for each output channel or for all, inputs with one for each token.

The codes are round(value / scale), ties to even, with the scale largest magnitude / 127, at least 1e-30; -128 is not
used. This is what ComfyUI's int8 files store, and what W8A8 products take (comfy-kitchen 0.2, `quantize_int8_rowwise`,
`quantize_int8_tensorwise`).
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from precision_lab.errors import InputError
from precision_lab.model.codings.base import Arrays, Coding, Inputs, Neighbours, evenly_spaced

LARGEST = 127
SMALLEST_SCALE = 1e-30
SCALES = ("channel", "tensor")
"""What shares a scale of a weight, the default first."""


@dataclass(frozen=True)
class Int8(Coding):
    """`weight` (outputs, channels), int8, and `scale`, (outputs, 1) or (1, 1), fp32. scale: one of SCALES."""

    scale: str = SCALES[0]

    name = "int8"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise InputError(f"int8.scale is {self.scale!r}, expected {' or '.join(SCALES)}")

    def encode(self, weight: mx.array) -> dict[str, mx.array]:
        scale = self._scale(weight)
        return {"weight": codes(weight, scale).astype(mx.int8), "scale": scale}

    def encode_stochastically(self, weight: mx.array, key: mx.array) -> dict[str, mx.array]:
        """As comfy-kitchen's quantize_int8_rowwise with a seed: the code below the value plus a number in [0, 1)."""
        scale = self._scale(weight)
        raised = mx.floor(weight / scale + mx.random.uniform(shape=weight.shape, key=key))
        return {"weight": mx.clip(raised, -LARGEST, LARGEST).astype(mx.int8), "scale": scale}

    def _scale(self, weight: mx.array) -> mx.array:
        return row_scale(weight if self.scale == "channel" else weight.reshape(1, -1))

    def decode(self, arrays: Arrays) -> mx.array:
        return arrays["weight"].astype(mx.float32) * arrays["scale"].astype(mx.float32)

    def neighbours(self, arrays: Arrays) -> Neighbours:
        return evenly_spaced(arrays["weight"].astype(mx.int32), arrays["scale"].astype(mx.float32), -LARGEST, LARGEST)


@dataclass(frozen=True)
class Int8Inputs(Inputs):
    """One scale for each token."""

    name = "int8"

    def rounded(self, x: mx.array) -> mx.array:
        scale = row_scale(x)
        return codes(x, scale) * scale


def row_scale(x: mx.array) -> mx.array:
    """The largest magnitude of each row / 127, (..., 1), at least SMALLEST_SCALE; not finite where x is not.

    It is 1 where a row is zero, for which comfy-kitchen stores SMALLEST_SCALE; the values are the same.
    """
    magnitude = mx.abs(x).max(axis=-1, keepdims=True)
    return mx.where(magnitude == 0, 1, mx.maximum(magnitude / LARGEST, SMALLEST_SCALE))


def codes(x: mx.array, scale: mx.array) -> mx.array:
    """The codes of x, as floating-point numbers."""
    return mx.clip(mx.round(x / scale), -LARGEST, LARGEST)
