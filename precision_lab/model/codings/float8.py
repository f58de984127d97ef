"""Float8 e4m3: a weight with one scale, one for each output channel or none; inputs with one a token, one a tensor or a
stated one.

A scale maps the largest magnitude to 448, as in vLLM-Omni and in the scaled fp8 files of ComfyUI. Checkpoints in plain
float8 (ComfyUI's fp8_e4m3fn) have no scale, so weights below 2^-10 become zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from precision_lab.errors import InputError, nearest
from precision_lab.model.codings.base import Arrays, Coding, Inputs
from precision_lab.numerics.formats import FORMATS

SCALES = ("none", "tensor", "channel")
"""What shares a scale of a weight."""

LARGEST = FORMATS["float8_e4m3fn"].max

_AXES = {"tensor": (0, 1), "channel": (1,)}


def check_scale(setting: str, scale: object) -> None:
    """Raises InputError unless `scale` is one of SCALES; the message names `setting`."""
    if scale not in SCALES:
        raise InputError(f"{setting} is {scale!r}, expected one of {', '.join(SCALES)}. {nearest(str(scale), SCALES)}")


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
        scale = largest_scale(weight, _AXES[self.scale]) if self.scale in _AXES else mx.ones((1, 1))
        return {"weight": mx.to_fp8(weight / scale), "scale": scale}

    def decode(self, arrays: Arrays) -> mx.array:
        return mx.from_fp8(arrays["weight"], mx.float32) * arrays["scale"]

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
