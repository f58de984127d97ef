"""One dual-stream block of the transformer: adaLN, joint attention, adaLN, feed-forward, on both streams.

B batch, L tokens of a stream, D width.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.layers import GELUTanh, LayerNorm, Linear, Sequential, SiLU
from precision_lab.model.modulation import GatedAdd
from precision_lab.model.qwen_image.attention import JointAttention
from precision_lab.model.qwen_image.streams import Streams


class Modulate(nn.Module):
    """`x * (1 + scale) + shift`; x: (B, L, D), shift and scale: (B, D)."""

    def __call__(self, x: mx.array, shift: mx.array, scale: mx.array) -> mx.array:
        return x * (1 + scale[:, None]) + shift[:, None]


class GELUProjection(nn.Module):
    """First half of the feed-forward: GELU(proj(x))."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.proj = Linear(dim, hidden)
        self.gelu = GELUTanh()

    def __call__(self, x: mx.array) -> mx.array:
        return self.gelu(self.proj(x))


class FeedForward(nn.Module):
    """D -> 4 D -> D with GELU; `net.1` takes the place of the dropout in the reference."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = Sequential(GELUProjection(dim, 4 * dim), nn.Identity(), Linear(4 * dim, dim))

    def __call__(self, x: mx.array) -> mx.array:
        return self.net(x)


class TransformerBlock(nn.Module):
    """QwenImageTransformerBlock of diffusers, without its fp16 clip."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.img_mod = Sequential(SiLU(), Linear(dim, 6 * dim))
        self.img_norm1 = LayerNorm()
        self.img_modulate1 = Modulate()
        self.txt_mod = Sequential(SiLU(), Linear(dim, 6 * dim))
        self.txt_norm1 = LayerNorm()
        self.txt_modulate1 = Modulate()
        self.attn = JointAttention(dim, num_heads)
        self.img_add1 = GatedAdd()
        self.txt_add1 = GatedAdd()
        self.img_norm2 = LayerNorm()
        self.img_modulate2 = Modulate()
        self.img_mlp = FeedForward(dim)
        self.img_add2 = GatedAdd()
        self.txt_norm2 = LayerNorm()
        self.txt_modulate2 = Modulate()
        self.txt_mlp = FeedForward(dim)
        self.txt_add2 = GatedAdd()

    def __call__(self, x: Streams, temb: mx.array, rotations: Streams, mask: mx.array | None = None) -> Streams:
        """x: (B, L, D) and (B, T, D); temb: (B, D); mask: (B, 1, 1, T + L) or None. Returns the shapes of x."""
        img, txt = x
        img_shift1, img_scale1, img_gate1, img_shift2, img_scale2, img_gate2 = mx.split(self.img_mod(temb), 6, axis=-1)
        txt_shift1, txt_scale1, txt_gate1, txt_shift2, txt_scale2, txt_gate2 = mx.split(self.txt_mod(temb), 6, axis=-1)

        update = self.attn(
            Streams(
                img=self.img_modulate1(self.img_norm1(img), img_shift1, img_scale1),
                txt=self.txt_modulate1(self.txt_norm1(txt), txt_shift1, txt_scale1),
            ),
            rotations,
            mask,
        )
        img = self.img_add1(img, img_gate1, update.img)
        txt = self.txt_add1(txt, txt_gate1, update.txt)

        img_mlp = self.img_mlp(self.img_modulate2(self.img_norm2(img), img_shift2, img_scale2))
        txt_mlp = self.txt_mlp(self.txt_modulate2(self.txt_norm2(txt), txt_shift2, txt_scale2))
        return Streams(img=self.img_add2(img, img_gate2, img_mlp), txt=self.txt_add2(txt, txt_gate2, txt_mlp))
