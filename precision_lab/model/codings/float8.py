"""Float8 e4m3: a weight with one scale, one for each output channel or none; inputs with one a token, one a tensor or a
stated one.

A scale maps the largest magnitude to 448, as in vLLM-Omni and in the scaled fp8 files of ComfyUI. Checkpoints in plain
float8 (ComfyUI's fp8_e4m3fn) have no scale, so weights below 2^-10 become zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from precision_lab.errors import InputError, expected
from precision_lab.model.codings.base import Arrays, Coding, Inputs, Neighbours
from precision_lab.model.codings.floats import floating
from precision_lab.numerics.formats import FORMATS

SCALES = ("none", "tensor", "channel")
"""What shares a scale of a weight."""

LARGEST = FORMATS["float8_e4m3fn"].max

_BIAS = 7
"""The bias of the exponent."""

_AXES = {"tensor": (0, 1), "channel": (1,)}


def check_scale(setting: str, scale: object) -> None:
    """Raises InputError unless `scale` is one of SCALES; the message names `setting`."""
    if scale not in SCALES:
        raise InputError(f"{setting} is {scale!r}, {expected(SCALES, str(scale))}")


@dataclass(frozen=True)
class Float8(Coding):
    """`weight` (outputs, channels), float8 codes in uint8, and `scale`, (1, 1) or (outputs, 1), fp32.

    scale: one of SCALES. Without one, `scale` is 1, and values beyond 448 saturate.
    """

    scale: str = "tensor"

    name = "float8"

    def __post_init__(self) -> None:
        check_scale("float8.scale", self.scale)

    def encode(self, weight: mx.array) -> dict[str, mx.array]:
        scale = self._scale(weight)
        return {"weight": mx.to_fp8(weight / scale), "scale": scale}

    def encode_stochastically(self, weight: mx.array, key: mx.array) -> dict[str, mx.array]:
        scale = self._scale(weight)
        random = mx.random.randint(0, 256, weight.shape, dtype=mx.uint8, key=key)
        return {"weight": stochastic_codes(weight / scale, random), "scale": scale}

    def _scale(self, weight: mx.array) -> mx.array:
        return largest_scale(weight, _AXES[self.scale]) if self.scale in _AXES else mx.ones((1, 1))

    def decode(self, arrays: Arrays) -> mx.array:
        return mx.from_fp8(arrays["weight"], mx.float32) * arrays["scale"]

    def neighbours(self, arrays: Arrays) -> Neighbours:
        codes = arrays["weight"]
        return floating(codes, mx.broadcast_to(arrays["scale"].astype(mx.float32), codes.shape), 8)

    def product(self, arrays: Arrays, x: mx.array, inputs: Inputs | None = None) -> mx.array:
        """The products of the codes are summed in fp32; the sums are multiplied by the scale, as hardware does."""
        codes = mx.from_fp8(arrays["weight"], mx.float32)
        return ((x if inputs is None else inputs.rounded(x)) @ codes.T) * arrays["scale"].T


@dataclass(frozen=True)
class Float8Inputs(Inputs):
    """scale: "token" (one for each row of channels), "tensor", or a positive number that was chosen beforehand.

    With a number, values beyond 448 times it saturate.
    """

    scale: str | float = "token"

    name = "float8"

    def __post_init__(self) -> None:
        stated = isinstance(self.scale, int | float) and not isinstance(self.scale, bool)
        if not (self.scale in ("token", "tensor") or (stated and 0 < float(self.scale) < float("inf"))):
            raise InputError(f"float8_inputs.scale is {self.scale!r}, expected token, tensor or a positive number")

    def rounded(self, x: mx.array) -> mx.array:
        if isinstance(self.scale, str):
            scale = largest_scale(x, (-1,) if self.scale == "token" else None)
            return mx.from_fp8(mx.to_fp8(x / scale), mx.float32) * scale
        return mx.where(mx.isfinite(x), mx.from_fp8(mx.to_fp8(x / self.scale), mx.float32) * self.scale, x)


def largest_scale(x: mx.array, axes: Sequence[int] | None) -> mx.array:
    """Largest magnitude over `axes` (kept; None: all) / 448, and 1 where all values are zero.

    It is not finite where x is not, because the float8 codes would hide that.
    """
    scale = mx.abs(x).max(axis=axes, keepdims=True) / LARGEST
    return mx.where(scale == 0, 1, scale)


def stochastic_codes(x: mx.array, random: mx.array) -> mx.array:
    """The e4m3 codes of x rounded down or, with odds of the remainder, up; x fp32, random uint8 of the same shape.

    As ComfyUI does where it adds a LoRA to float8 weights (comfy-kitchen, stochastic_rounding_fp8): in float16, which
    rounds a value to 1/128 of a step first, with 8 random bits and saturation. What is not finite becomes NaN.
    """
    half = x.astype(mx.float16)
    size = mx.abs(half)
    exponent = mx.clip(mx.floor(mx.log2(size.astype(mx.float32)).astype(mx.float16)) + _BIAS, 0, 15)
    power = mx.power(2.0, mx.maximum(exponent, 1).astype(mx.float32) - _BIAS).astype(mx.float16)
    steps = mx.where(exponent == 0, size / (power / 8), (size / power - 1) * 8)
    steps = mx.floor(steps + random.astype(mx.float16) / 256) / 8
    rounded = mx.where(exponent == 0, power * steps, power * (1 + steps)) * mx.sign(half)
    codes = mx.to_fp8(mx.clip(rounded.astype(mx.float32), -LARGEST, LARGEST))
    return mx.where(mx.isfinite(x), codes, mx.array(0x7F, mx.uint8))
