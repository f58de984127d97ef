"""The feed-forward on smaller numbers, exactly: scaled where it is linear, the gate gives it back in fp32.

What `ffn_scaling` means to do. The second linear reads GELU's output divided by a scale, its bias is divided too, and
the gate restores the update. The first linear may be scaled as well; its result must then be restored before GELU sees
it. Draw Things' fp16 build (draw-things-community, QwenImage.swift; figures in conf/technique/draw_things_*), whose
second linear accumulates in fp32, as every product does here. Cost: one element-wise pass over the hidden layer; with
the first linear scaled, two more and GELU on fp32.

It keeps the hidden layer and the second linear in range. The stream itself needs fp32_residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.techniques.parts.scaled_parts import PerBlock, ScaledGatedAdd, ScaledLinear, at_block


class _Hidden(Wrapper):
    """First linear and GELU, divided by `scale` before they are rounded to the dtype of x."""

    def __init__(self, inner: nn.Module, scale: float):
        super().__init__(inner)
        self.scale = scale

    def __call__(self, x: mx.array) -> mx.array:
        return (self.inner(x).astype(mx.float32) / self.scale).astype(x.dtype)


@dataclass(frozen=True)
class ScaledFeedForward:
    """`hidden` divides what GELU gives to the second linear: a figure, or one for each block."""

    hidden: PerBlock = 16.0
    sites: Sequence[str] = (
        "transformer_blocks.*.{img,txt}_mlp.{net.0,net.2}",
        "transformer_blocks.*.{img,txt}_add2",
    )
    preserves_function: bool = True
    composes: bool = False

    def rewrite(self, site: Site) -> nn.Module:
        hidden = at_block(self.hidden, site)
        if site.path.endswith("_add2"):
            return ScaledGatedAdd(site.module, hidden)
        return ScaledLinear(site, 1.0, hidden) if site.path.endswith("net.2") else _Hidden(site.module, hidden)


class _Restored(ScaledLinear):
    """The linear on x / scale, its result times scale in fp32."""

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x).astype(mx.float32) * self.input_scale


@dataclass(frozen=True)
class ScaledFirstLinear:
    """`scale` divides the input of the first linear; its result is restored in fp32, and GELU runs in fp32 on it."""

    scale: PerBlock = 2.0
    sites: Sequence[str] = ("transformer_blocks.*.{img,txt}_mlp.net.0.proj",)
    preserves_function: bool = True
    composes: bool = False

    def rewrite(self, site: Site) -> nn.Module:
        scale = at_block(self.scale, site)
        return _Restored(site, scale, scale)
