"""The numeric operations of sampling that Qwen-Image 1.x has alone, each an addressable module.

They round where diffusers rounds, to the dtype of the latents unless fp32 is stated.
B batch, L tokens, C = 64 packed latent channels.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.qwen_image.config import VAEConfig
from precision_lab.model.text_to_image import sampler


class Guidance(nn.Module):
    """True classifier-free guidance; each token is rescaled to the norm of its conditional velocity.

    cond, uncond: (B, L, C) of the same dtype, which the result has too.
    """

    def __call__(self, cond: mx.array, uncond: mx.array, scale: float) -> mx.array:
        push = (scale * (cond - uncond).astype(mx.float32)).astype(cond.dtype)
        combined = uncond + push
        return combined * (_norm(cond) / _norm(combined))


def _norm(x: mx.array) -> mx.array:
    return mx.linalg.norm(x.astype(mx.float32), axis=-1, keepdims=True).astype(x.dtype)


class Denormalize(nn.Module):
    """Rescales latents from unit variance to the scale of the VAE; x: (..., z_dim).

    Divides by the rounded reciprocal of the rounded standard deviation, as the reference does.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self._mean = mx.array(config.latents_mean, dtype=mx.float32)
        self._std = mx.array(config.latents_std, dtype=mx.float32)

    def __call__(self, x: mx.array) -> mx.array:
        mean, std = self._mean.astype(x.dtype), self._std.astype(x.dtype)
        return x / (mx.ones_like(std) / std) + mean


class Sampler(sampler.Sampler):
    """The component `pipeline`: the operations of sampling."""

    def __init__(self, config: VAEConfig):
        super().__init__(Guidance(), Denormalize(config))


def pack(latents: mx.array) -> mx.array:
    """Packs (B, C, h, w) to (B, h/2 * w/2, 4 C): 2x2 patches in the order (channel, row, column)."""
    b, c, h, w = latents.shape
    patches = latents.reshape(b, c, h // 2, 2, w // 2, 2)
    return patches.transpose(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * (w // 2), 4 * c)


def unpack(tokens: mx.array, height: int, width: int) -> mx.array:
    """Unpacks (B, h/2 * w/2, 4 C) to channels-last (B, h, w, C); the inverse of `pack` up to layout."""
    b, _, c = tokens.shape
    patches = tokens.reshape(b, height // 2, width // 2, c // 4, 2, 2)
    return patches.transpose(0, 1, 4, 2, 5, 3).reshape(b, height, width, c // 4)
