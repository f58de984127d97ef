"""Blocks of the VAEs of Qwen-Image, for single images.

The published models are video VAEs of causal 3-D convolutions. For a single frame, all temporal taps except the last
read zeros, so each convolution equals the 2-D convolution of its last tap exactly.

B batch, H rows, W columns, C channels (last).
"""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.layers import Add, Sequential, SiLU, scaled_dot_product_attention


class Conv2d(nn.Conv2d):
    """2-D convolution; on the CPU the bias is added in fp32 and the sum is rounded once to the dtype of x.

    MLX accumulates in fp32 on every backend but rounds before it adds the bias. The CPU computes 16-bit convolutions in
    fp32 in any case, so rounding once costs nothing there. On a GPU the result is that of MLX.
    """

    def __call__(self, x: mx.array) -> mx.array:
        if mx.default_device().type == mx.DeviceType.cpu:
            return super().__call__(x.astype(mx.float32)).astype(x.dtype)
        return super().__call__(x)


class ChannelNorm(nn.Module):
    """RMSNorm over the channels: `x / max(|x|, 1e-12) * sqrt(C) * gamma`.

    The norm |x| is fp32; each of the three products is rounded to the dtype of x (QwenImageRMS_norm in diffusers).
    """

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = mx.ones((dim,))

    def __call__(self, x: mx.array) -> mx.array:
        y = x.astype(mx.float32)
        norm = mx.sqrt(mx.sum(y * y, axis=-1, keepdims=True))
        unit = (y / mx.maximum(norm, 1e-12)).astype(x.dtype)
        # in fp32, because sqrt(C) would otherwise be rounded to the dtype of x
        scaled = (unit.astype(mx.float32) * x.shape[-1] ** 0.5).astype(x.dtype)
        return scaled * self.gamma


class ResidualBlock(nn.Module):
    """Adds norm, SiLU and 3x3 convolution, applied twice, to the input: (B, H, W, C) to (B, H, W, C').

    If C and C' differ, a 1x1 convolution, `conv_shortcut`, maps the input to C' channels.
    """

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.norm1 = ChannelNorm(in_dim)
        self.nonlinearity1 = SiLU()
        self.conv1 = Conv2d(in_dim, out_dim, 3, padding=1)
        self.norm2 = ChannelNorm(out_dim)
        self.nonlinearity2 = SiLU()
        self.conv2 = Conv2d(out_dim, out_dim, 3, padding=1)
        if in_dim != out_dim:
            self.conv_shortcut = Conv2d(in_dim, out_dim, 1)
        self.add = Add()

    def __call__(self, x: mx.array) -> mx.array:
        residual = self.conv_shortcut(x) if "conv_shortcut" in self else x
        x = self.conv1(self.nonlinearity1(self.norm1(x)))
        x = self.conv2(self.nonlinearity2(self.norm2(x)))
        return self.add(residual, x)


class Attend(nn.Module):
    """softmax(q k^T / sqrt(C)) v with one head; q, k, v: (B, H, W, C). Returns their shape."""

    def __call__(self, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        # the head is too wide for a fused kernel, and MLX's fallback would round scores and probabilities to 16 bits
        flat_q, flat_k, flat_v = (a.astype(mx.float32).flatten(1, 2)[:, None] for a in (q, k, v))
        out = scaled_dot_product_attention(flat_q, flat_k, flat_v, scale=q.shape[-1] ** -0.5)
        return out.reshape(q.shape).astype(q.dtype)


class AttentionBlock(nn.Module):
    """Adds self-attention over all H * W positions to the input (B, H, W, C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = ChannelNorm(dim)
        self.to_qkv = Conv2d(dim, 3 * dim, 1)
        self.attend = Attend()
        self.proj = Conv2d(dim, dim, 1)
        self.add = Add()

    def __call__(self, x: mx.array) -> mx.array:
        q, k, v = mx.split(self.to_qkv(self.norm(x)), 3, axis=-1)
        return self.add(x, self.proj(self.attend(q, k, v)))


class MidBlock(nn.Module):
    """A residual block, attention and a second residual block."""

    def __init__(self, dim: int):
        super().__init__()
        self.resnets = [ResidualBlock(dim, dim), ResidualBlock(dim, dim)]
        self.attentions = [AttentionBlock(dim)]

    def __call__(self, x: mx.array) -> mx.array:
        first, second = self.resnets
        (attention,) = self.attentions
        return second(attention(first(x)))


class PadBottomRight(nn.Module):
    """Pads one row of zeros at the bottom and one column on the right."""

    def __call__(self, x: mx.array) -> mx.array:
        return mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])


class Downsample(nn.Module):
    """Maps (B, H, W, C) to (B, H / 2, W / 2, C). The `time_conv` does not run for a first frame and is left out."""

    def __init__(self, dim: int):
        super().__init__()
        self.resample = Sequential(PadBottomRight(), Conv2d(dim, dim, 3, stride=2))

    def __call__(self, x: mx.array) -> mx.array:
        return self.resample(x)


class RepeatPixels(nn.Module):
    """Repeats each pixel 2 x 2 times: nearest-neighbour upsampling, exact in any dtype."""

    def __call__(self, x: mx.array) -> mx.array:
        return mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)


class Upsample(nn.Module):
    """Maps (B, H, W, C) to (B, 2 H, 2 W, C'). The `time_conv` does not run for a first frame and is left out."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.resample = Sequential(RepeatPixels(), Conv2d(in_dim, out_dim, 3, padding=1))

    def __call__(self, x: mx.array) -> mx.array:
        return self.resample(x)


class UpBlock(nn.Module):
    """Residual blocks, followed by an upsampling that halves the channels if `upsample`."""

    def __init__(self, in_dim: int, out_dim: int, num_resnets: int, upsample: bool):
        super().__init__()
        dims = [in_dim] + [out_dim] * num_resnets
        self.resnets = [ResidualBlock(a, b) for a, b in pairwise(dims)]
        self.upsamplers = [Upsample(out_dim, out_dim // 2)] if upsample else []

    def __call__(self, x: mx.array) -> mx.array:
        for resnet in self.resnets:
            x = resnet(x)
        for upsampler in self.upsamplers:
            x = upsampler(x)
        return x
