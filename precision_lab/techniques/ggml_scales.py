"""The scales of stable-diffusion.cpp for Qwen-Image: products of small numbers, restored at once in fp32.

(qwen_image.hpp: `Linear(..., scale = 1 / 32)` for both output projections of attention, "to prevent NaN issues", 1/128
for the second linear of the feed-forward, 1/128 in attention.) ggml keeps activations in fp32 and rounds the factors of
a product to 16 bits: x * scale is multiplied by the weight, the result is divided by the scale, and the bias is added.
In attention k and v are multiplied by the scale; the softmax scale and the result are divided by it. Cost: two
element-wise passes at each of these products.

An update restored in fp32 may exceed the range of float16. With fp32_residual it stays in fp32, as in ggml, whose
streams are fp32. Without, it is added in fp32 and the sum is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.attention import Attend
from precision_lab.model.layers import scaled_dot_product_attention
from precision_lab.numerics.scales import Division
from precision_lab.techniques.base import ByPlace, Places, without_adapters
from precision_lab.techniques.parts.kinds import expect_kind
from precision_lab.techniques.parts.scaled_parts import ScaledGatedAdd, is_linear, with_bias


class _Product(Wrapper):
    """`(x * scale) @ weight.T / scale + bias`, in fp32 after the product."""

    def __init__(self, site: Site, scale: float):
        super().__init__(site.module)
        if not is_linear(site.module):
            raise InputError(f"ggml_scales: {site} is {type(site.module).__name__}, expected a linear")
        self.scale = scale
        self._linear = with_bias(site.module, lambda _: None)
        self._bias = without_adapters(site.module).get("bias")

    def __call__(self, x: mx.array) -> mx.array:
        product = self._linear(x * self.scale).astype(mx.float32)
        restored = product / self.scale
        return restored if self._bias is None else restored + self._bias.astype(mx.float32)


class _Attend(nn.Module):
    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
        q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k * self.scale, v * self.scale))
        out = scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5 / self.scale, mask=mask)
        return out.transpose(0, 2, 1, 3) / self.scale


@dataclass(frozen=True)
class GGMLScales(ByPlace):
    """The scales multiply, as in the published code."""

    attention_out: float = 1 / 32
    feed_forward_out: float = 1 / 128
    attention: float = 1 / 128
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False

    @property
    def divisions(self) -> Mapping[str, Division]:
        """What the reciprocals of the scales divide. That of attention divides no result, but k and v inside."""
        return {
            "attention_out": Division(
                1 / self.attention_out, ("transformer_blocks.*.attn.{to_out,to_out.0,to_add_out}",)
            ),
            "feed_forward_out": Division(
                1 / self.feed_forward_out,
                ("transformer_blocks.*.{{img,txt}_mlp.net.2,img_mlp.out}", "transformer_blocks.*.{img,txt}_mlp"),
            ),
        }

    @property
    def places(self) -> Places:
        return {
            "transformer_blocks.*.attn.{attend,attend_prefix}": self._attend,
            "transformer_blocks.*.attn.{to_out.0,to_add_out}": lambda site: _Product(site, self.attention_out),
            "transformer_blocks.*.{{img,txt}_mlp.net.2,img_mlp.out}": lambda site: _Product(
                site, self.feed_forward_out
            ),
            "transformer_blocks.*.{img,txt}_{add1,add2}": lambda site: ScaledGatedAdd(site.module, 1.0),
        }

    def _attend(self, site: Site) -> nn.Module:
        expect_kind("ggml_scales", site, Attend)
        return _Attend(self.attention)
