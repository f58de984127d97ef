"""The feed-forward on smaller numbers without changing the function: scaled where it is linear, restored by the gate.

`ffn_scaling` intends this. The second linear reads GELU's output divided by a scale, its bias is divided too, and the
gate restores the update in fp32. The first linear may be scaled as well; its result must then be restored before GELU
reads it. Draw Things' fp16 build does both (draw-things-community, QwenImage.swift; scales in
conf/technique/draw_things_*); its second linear accumulates in fp32, as every product does here. Cost: one element-wise
pass over the hidden layer; with the first linear scaled, two more passes and GELU on fp32.

It keeps the hidden layer and the second linear in range. The stream itself needs fp32_residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.techniques.base import ByPlace, Places
from precision_lab.techniques.parts.scaled_parts import PerBlock, ScaledGatedAdd, ScaledLinear, at_block


class _Hidden(Wrapper):
    """First linear and GELU; the result is divided by `scale` before it is rounded to the dtype of x."""

    def __init__(self, inner: nn.Module, scale: float):
        super().__init__(inner)
        self.scale = scale

    def __call__(self, x: mx.array) -> mx.array:
        return (self.inner(x).astype(mx.float32) / self.scale).astype(x.dtype)


@dataclass(frozen=True)
class ScaledFeedForward(ByPlace):
    """`hidden` divides GELU's output before the second linear reads it: one scale, or one a block."""

    hidden: PerBlock = 16.0
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False

    @property
    def places(self) -> Places:
        hidden = partial(at_block, self.hidden)
        return {
            "transformer_blocks.*.{img,txt}_mlp.net.0": lambda site: _Hidden(site.module, hidden(site)),
            "transformer_blocks.*.{img,txt}_mlp.net.2": (
                lambda site: ScaledLinear(site, input_scale=1.0, bias_scale=hidden(site))
            ),
            "transformer_blocks.*.{img,txt}_add2": lambda site: ScaledGatedAdd(site.module, hidden(site)),
        }


class _Restored(ScaledLinear):
    """The linear on x / input_scale; its result times input_scale, in fp32."""

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x).astype(mx.float32) * self.input_scale


@dataclass(frozen=True)
class ScaledFirstLinear:
    """`scale` divides the input of the first linear; its result is restored in fp32, and GELU runs on it in fp32."""

    scale: PerBlock = 2.0
    sites: Sequence[str] = ("transformer_blocks.*.{img,txt}_mlp.net.0.proj",)
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False

    def rewrite(self, site: Site) -> nn.Module:
        scale = at_block(self.scale, site)
        return _Restored(site, input_scale=scale, bias_scale=scale)
