"""The numeric operations of sampling around the transformer, each an addressable module (component `pipeline`).

They round where diffusers rounds, to the dtype of the latents unless fp32 is stated.
B batch, L tokens, C = 64 packed latent channels.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.model.qwen_image.config import VAEConfig


class Timestep(nn.Module):
    """Maps a sigma to a timestep (1,) in [0, 1]: times 1000 in fp32, rounded to `dtype`, divided by 1000, rounded."""

    def __call__(self, sigma: mx.array, dtype: mx.Dtype) -> mx.array:
        scaled = (1000 * sigma.astype(mx.float32)).astype(dtype)
        return (scaled.astype(mx.float32) / 1000).astype(dtype).reshape(1)


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


class EulerStep(nn.Module):
    """`latents + dt * velocity`; latents, velocity: (B, L, C); dt: fp32 scalar.

    In the reference dt is a 0-dimensional tensor, which does not promote. It is therefore rounded to the dtype of the
    velocity (in bf16 by up to 0.2 %), and so is the increment. Only the addition is in fp32; the sum is rounded again.
    """

    def __call__(self, latents: mx.array, velocity: mx.array, dt: mx.array) -> mx.array:
        increment = dt.astype(velocity.dtype) * velocity
        return (latents.astype(mx.float32) + increment).astype(velocity.dtype)


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


class ToPixels(nn.Module):
    """Maps images in [-1, 1] to fp32 values in [0, 255], unrounded; x: (B, H, W, 3)."""

    def __call__(self, x: mx.array) -> mx.array:
        return 255 * mx.clip(x * 0.5 + 0.5, 0, 1).astype(mx.float32)


class Sampler(nn.Module):
    """The component `pipeline`: the operations of sampling."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.timestep = Timestep()
        self.guidance = Guidance()
        self.euler_step = EulerStep()
        self.denormalize = Denormalize(config)
        self.to_pixels = ToPixels()


def noise(seed: int, channels: int, height: int, width: int) -> np.ndarray:
    """Standard normal latents (1, channels, height, width), fp32, from NumPy's PCG64: identical on every backend."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.standard_normal((1, channels, height, width), dtype=np.float32)


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
