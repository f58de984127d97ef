"""Linear weights, and if asked their inputs, in float8 e4m3: with no scale, one a tensor, or one an output channel.

vLLM-Omni quantises online like this (one scale for a weight, one for each token of the input); everywhere it breaks
Qwen-Image (issue 2728); without img_mlp LPIPS is 0.39, without timestep MLP and img_mod instead 0.17 (pull
request 2795). Checkpoints in plain float8 (ComfyUI's fp8_e4m3fn) have no scale: weights below 2^-10 become zero.
A scale maps the largest magnitude to 448. Products are summed in fp32. Storage: 8 bits a weight and the scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError, nearest
from precision_lab.instrument.sites import Site
from precision_lab.numerics.formats import FORMATS
from precision_lab.techniques.narrow_accumulators import BLOCK_LINEARS

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
        self._quantize_input = quantize_input

    def __call__(self, x: mx.array) -> mx.array:
        wide = x.astype(mx.float32)
        if self._quantize_input:
            scale = _scale(wide, (-1,))
            wide = mx.from_fp8(mx.to_fp8(wide / scale), mx.float32) * scale
        y = (wide @ mx.from_fp8(self.weight, mx.float32).T) * self.scale.T
        return (y + self.bias.astype(mx.float32) if "bias" in self else y).astype(x.dtype)


def _scale(x: mx.array, axes: Sequence[int]) -> mx.array:
    """Largest magnitude over `axes` (kept) / 448; 1 where all is zero. Not finite where x is not: the codes hide it."""
    scale = mx.abs(x).max(axis=axes, keepdims=True) / _LARGEST
    return mx.where(scale == 0, 1, scale)


@dataclass(frozen=True)
class Float8Weights:
    """`scale`: none (values beyond 448 saturate), tensor or channel. `quantize_input`: inputs too, a scale a token."""

    sites: Sequence[str] = BLOCK_LINEARS
    scale: str = "tensor"
    quantize_input: bool = False
    preserves_function: bool = False
    composes: bool = False

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise InputError(
                f"float8_weights.scale is {self.scale!r}, expected one of {', '.join(SCALES)}. "
                + nearest(str(self.scale), SCALES)
            )

    def rewrite(self, site: Site) -> nn.Module:
        if not isinstance(site.module, nn.Linear):
            raise InputError(f"float8_weights: {site} is {type(site.module).__name__}, expected Linear")
        return Float8Linear(site.module, self.scale, self.quantize_input)
