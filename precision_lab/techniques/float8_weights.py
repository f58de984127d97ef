"""Linear weights, and optionally their inputs, in float8 e4m3: without a scale, or with one a tensor or output channel.

vLLM-Omni quantises online like this, with one scale for a weight and one for each token of the input. Applied to every
linear it breaks Qwen-Image (issue 2728). Leaving out img_mlp gives an LPIPS of 0.39; leaving out the timestep MLP and
img_mod instead gives 0.17 (pull request 2795). Checkpoints in plain float8 (ComfyUI's fp8_e4m3fn) have no scale, so
weights below 2^-10 become zero. A scale maps the largest magnitude to 448. Products are summed in fp32. Storage: 8 bits
a weight, and the scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError, nearest
from precision_lab.instrument.sites import Site
from precision_lab.numerics.formats import FORMATS
from precision_lab.techniques.parts.kinds import expect_kind

SCALES = ("none", "tensor", "channel")
_LARGEST = FORMATS["float8_e4m3fn"].max


class Float8Linear(nn.Module):
    """`x @ weight.T + bias` with `weight` as float8 codes (uint8) and `scale` (1, 1) or (out, 1), fp32."""

    def __init__(self, linear: nn.Linear, scale: str, quantize_input: bool):
        super().__init__()
        weight = linear.weight.astype(mx.float32)
        axes = {"tensor": (0, 1), "channel": (1,)}
        self.scale = _scale(weight, axes[scale]) if scale in axes else mx.ones((1, 1))
        self.weight = mx.to_fp8(weight / self.scale)
        if "bias" in linear:
            self.bias = linear.bias
        self._scale_of, self._quantize_input = scale, quantize_input

    @property
    def kind(self) -> tuple[str, bool]:
        """What shares a scale, one of SCALES, and whether inputs are quantised."""
        return self._scale_of, self._quantize_input

    def __call__(self, x: mx.array) -> mx.array:
        wide = x.astype(mx.float32)
        if self._quantize_input:
            scale = _scale(wide, (-1,))
            wide = mx.from_fp8(mx.to_fp8(wide / scale), mx.float32) * scale
        y = (wide @ mx.from_fp8(self.weight, mx.float32).T) * self.scale.T
        return (y + self.bias.astype(mx.float32) if "bias" in self else y).astype(x.dtype)


def _scale(x: mx.array, axes: Sequence[int]) -> mx.array:
    """Largest magnitude over `axes` (kept) / 448, and 1 where all values are zero.

    It is not finite where x is not, because the float8 codes would hide that.
    """
    scale = mx.abs(x).max(axis=axes, keepdims=True) / _LARGEST
    return mx.where(scale == 0, 1, scale)


@dataclass(frozen=True)
class Float8Weights:
    """Linears in e4m3. `scale`: none (values beyond 448 saturate), tensor or channel.

    `quantize_input` quantises the inputs too, with one scale a token.
    """

    sites: Sequence[str]
    scale: str = "tensor"
    quantize_input: bool = False
    preserves_function: ClassVar[bool] = False
    composes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise InputError(
                f"float8_weights.scale is {self.scale!r}, expected one of {', '.join(SCALES)}. "
                + nearest(str(self.scale), SCALES)
            )

    def rewrite(self, site: Site) -> nn.Module:
        expect_kind("float8_weights", site, nn.Linear)
        return Float8Linear(site.module, self.scale, self.quantize_input)
