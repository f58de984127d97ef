"""The numeric operations of sampling that all text-to-image models share, each an addressable module.

They round where diffusers rounds, to the dtype of the latents unless fp32 is stated.
B batch, L tokens, C latent channels.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np


class Timestep(nn.Module):
    """Maps a sigma to a timestep (1,) in [0, 1]: times 1000 in fp32, rounded to `dtype`, divided by 1000, rounded."""

    def __call__(self, sigma: mx.array, dtype: mx.Dtype) -> mx.array:
        scaled = (1000 * sigma.astype(mx.float32)).astype(dtype)
        return (scaled.astype(mx.float32) / 1000).astype(dtype).reshape(1)


class EulerStep(nn.Module):
    """`latents + dt * velocity`; latents, velocity: (B, L, C); dt: fp32 scalar.

    In the reference dt is a 0-dimensional tensor, which does not promote. It is therefore rounded to the dtype of the
    velocity (in bf16 by up to 0.2 %), and so is the increment. Only the addition is in fp32; the sum is rounded again.
    """

    def __call__(self, latents: mx.array, velocity: mx.array, dt: mx.array) -> mx.array:
        increment = dt.astype(velocity.dtype) * velocity
        return (latents.astype(mx.float32) + increment).astype(velocity.dtype)


class ToPixels(nn.Module):
    """Maps images in [-1, 1] to fp32 values in [0, 255], unrounded; x: (B, H, W, C)."""

    def __call__(self, x: mx.array) -> mx.array:
        return 255 * mx.clip(x * 0.5 + 0.5, 0, 1).astype(mx.float32)


class Sampler(nn.Module):
    """The component `pipeline`: the operations of sampling.

    guidance: maps both velocities (B, L, C) and a scale to one. denormalize: maps latents (..., C) of unit variance to
    those of the VAE.
    """

    def __init__(self, guidance: nn.Module, denormalize: nn.Module):
        super().__init__()
        self.timestep = Timestep()
        self.guidance: Any = guidance
        self.euler_step = EulerStep()
        self.denormalize: Any = denormalize
        self.to_pixels = ToPixels()


def noise(seed: int, channels: int, height: int, width: int) -> np.ndarray:
    """Standard normal latents (1, channels, height, width), fp32, from NumPy's PCG64: identical on every backend."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.standard_normal((1, channels, height, width), dtype=np.float32)
