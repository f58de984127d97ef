"""One block of the transformer: adaLN, block-causal attention, adaLN, feed-forward, on one stream.

B batch, N tokens in the pass, D width, C channels a head.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.layers import LayerNorm, Linear, Multiply, SiLU, Tanh
from precision_lab.model.modulation import GatedAdd, over_tokens
from precision_lab.model.qwen_image_21.attention import Attention
from precision_lab.model.qwen_image_21.prefix import KeysValues, Output
from precision_lab.model.qwen_image_21.segments import Segments

FLOAT16_MAX = 65504


class Modulation(NamedTuple):
    """Scales and gates of attention (1) and feed-forward (2), shared by all blocks.

    (B, D) in a pass of the target, (1, D) in a pass of the prefix, and (B + 1, D) in a pass of both, the row of the
    prefix last.
    """

    scale1: mx.array
    gate1: mx.array
    scale2: mx.array
    gate2: mx.array


class Modulate(nn.Module):
    """`x * (1 + scale)`; x: (B, N, D), scale: (B, D), or (B or 1, N or 1, D)."""

    def __call__(self, x: mx.array, scale: mx.array) -> mx.array:
        return x * (1 + over_tokens(scale))


class FeedForward(nn.Module):
    """SwiGLU, D -> hidden -> D: `out(silu(gate_layer(x)) * proj(x))` (Shazeer, arXiv:2002.05202)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.proj = Linear(dim, hidden, bias=False)
        self.gate_layer = Linear(dim, hidden, bias=False)
        self.activation_fn = SiLU()
        self.multiply = Multiply()
        self.out = Linear(hidden, dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.out(self.multiply(self.activation_fn(self.gate_layer(x)), self.proj(x)))


class Float16Clip(nn.Module):
    """Clips float16 to its largest finite numbers, which replaces infinities; other dtypes pass unchanged."""

    def __call__(self, x: mx.array) -> mx.array:
        return mx.clip(x, -FLOAT16_MAX, FLOAT16_MAX) if x.dtype == mx.float16 else x


class TransformerBlock(nn.Module):
    """QwenImage21TransformerBlock of diffusers."""

    def __init__(self, dim: int, num_heads: int, hidden: int, eps: float):
        super().__init__()
        self.img_norm1 = LayerNorm(eps)
        self.img_modulate1 = Modulate()
        self.attn = Attention(dim, num_heads, eps)
        self.img_gate1 = Tanh()
        self.img_add1 = GatedAdd()
        self.img_norm2 = LayerNorm(eps)
        self.img_modulate2 = Modulate()
        self.img_mlp = FeedForward(dim, hidden)
        self.img_gate2 = Tanh()
        self.img_add2 = GatedAdd()
        self.img_clip = Float16Clip()

    def __call__(
        self,
        x: mx.array,
        modulation: Modulation,
        rotation: mx.array,
        segments: Segments,
        prefix: KeysValues | None = None,
    ) -> Output:
        """x: (B, N, D); rotation: (N, C / 2); prefix: that of a pass of the target alone.

        Returns the shape of x, and in a pass of the prefix its keys and values.
        """
        spread = segments.over_tokens
        modulated = self.img_modulate1(self.img_norm1(x), spread(modulation.scale1))
        update, kept = self.attn(modulated, rotation, segments, prefix)
        x = self.img_add1(x, spread(self.img_gate1(modulation.gate1)), update)

        modulated = self.img_modulate2(self.img_norm2(x), spread(modulation.scale2))
        x = self.img_add2(x, spread(self.img_gate2(modulation.gate2)), self.img_mlp(modulated))
        return Output(self.img_clip(x), kept)
