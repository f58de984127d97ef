"""The numeric operations of sampling that Qwen-Image-2.1 has alone, each an addressable module.

They round where diffusers rounds, to the dtype of the latents. B batch, L tokens, C latent channels.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.qwen_image_21.config import VAEConfig
from precision_lab.model.text_to_image import sampler


class Guidance(nn.Module):
    """Classifier-free guidance, `uncond + scale * (cond - uncond)`, rounded after each operation.

    cond, uncond: (B, L, C) of the same dtype, which the result has too.
    """

    def __call__(self, cond: mx.array, uncond: mx.array, scale: float) -> mx.array:
        push = (scale * (cond - uncond).astype(mx.float32)).astype(cond.dtype)
        return uncond + push


class Denormalize(nn.Module):
    """`x * std + mean`: rescales latents (..., z_dim) from unit variance to the scale of the VAE."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self._mean = mx.array(config.latents_mean, dtype=mx.float32)
        self._std = mx.array(config.latents_std, dtype=mx.float32)

    def __call__(self, x: mx.array) -> mx.array:
        return x * self._std.astype(x.dtype) + self._mean.astype(x.dtype)


class Sampler(sampler.Sampler):
    """The component `pipeline`: the operations of sampling."""

    def __init__(self, config: VAEConfig):
        super().__init__(Guidance(), Denormalize(config))
