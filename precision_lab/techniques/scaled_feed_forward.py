"""The feed-forward on smaller numbers without changing the function: scaled where it is linear, restored by the gate.

`ffn_scaling` intends this. The second linear reads GELU's output divided by a scale, its bias is divided too, and the
gate restores the update in fp32. The first linear may be scaled as well; its result must then be restored before GELU
reads it. Draw Things' fp16 build does both (draw-things-community, QwenImage.swift; scales in
conf/technique/draw_things_*); its second linear accumulates in fp32, as every product does here. Cost: one element-wise
pass over the hidden layer; with the first linear scaled, two more passes and GELU on fp32.

In SwiGLU (2.1) the hidden layer is a product, which is linear in the factor without an activation. The linear of that
factor reads x divided by the scale, so the factor is smaller too. Cost: one pass over x instead of the hidden layer.

It keeps the hidden layer and the last linear in range. The stream itself needs fp32_residual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.numerics.scales import Division, PerBlock
from precision_lab.techniques.base import ByPlace, Places
from precision_lab.techniques.parts.scaled_parts import ScaledGatedAdd, ScaledLinear, at_block, is_linear


class _Hidden(Wrapper):
    """First linear and GELU; the result is divided by `scale` before it is rounded to the dtype of x."""

    def __init__(self, inner: nn.Module, scale: float):
        super().__init__(inner)
        self.scale = scale

    def __call__(self, x: mx.array) -> mx.array:
        return (self.inner(x).astype(mx.float32) / self.scale).astype(x.dtype)


def _scaled_hidden(site: Site, scale: float) -> nn.Module:
    """The module that makes the hidden layer, which then is divided by `scale`.

    A linear makes it in SwiGLU: the hidden layer is the product of its result and an activation, so it may read x /
    `scale` itself. GELU is not linear, so its result is divided.
    """
    if is_linear(site.module):
        return ScaledLinear(site, input_scale=scale, bias_scale=scale)
    return _Hidden(site.module, scale)


@dataclass(frozen=True)
class ScaledFeedForward(ByPlace):
    """`hidden` divides what the last linear reads, GELU's or SwiGLU's output: one scale, or one a block."""

    hidden: PerBlock = 16.0
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False

    @property
    def divisions(self) -> Mapping[str, Division]:
        of_gelu = "transformer_blocks.*.{img,txt}_mlp.net.{0,1,2}"  # 1: what takes the place of the dropout
        of_swiglu = "transformer_blocks.*.img_mlp.{proj,multiply,out}"
        return {"hidden": Division(self.hidden, (of_gelu, of_swiglu, "transformer_blocks.*.{img,txt}_mlp"))}

    @property
    def places(self) -> Places:
        hidden = partial(at_block, self.hidden)
        return {
            "transformer_blocks.*.{{img,txt}_mlp.net.0,img_mlp.proj}": lambda site: _scaled_hidden(site, hidden(site)),
            "transformer_blocks.*.{{img,txt}_mlp.net.2,img_mlp.out}": (
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

    @property
    def divisions(self) -> Mapping[str, Division]:
        return {"scale": Division(self.scale, tuple(self.sites))}

    @property
    def widens(self) -> Sequence[str]:
        return [f"{pattern.removesuffix('.proj')}.gelu" for pattern in self.sites if pattern.endswith(".proj")]

    def rewrite(self, site: Site) -> nn.Module:
        scale = at_block(self.scale, site)
        return _Restored(site, input_scale=scale, bias_scale=scale)
