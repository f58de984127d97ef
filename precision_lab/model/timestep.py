"""The embedding of a timestep: sinusoids and two linears.

B batch, D width.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.model.layers import Linear, SiLU

TIME_CHANNELS = 256


def frequencies() -> mx.array:
    """The frequencies of the sinusoids, 1 to nearly 1 / 10000: (128,) fp32.

    Arguments reach 1000 rad, so the last bit of this table changes the model's output by 1e-5. As in diffusers, the
    exponent is fp32; its exponential is computed in float64 and rounded.
    """
    half = TIME_CHANNELS // 2
    exponent = np.float32(-math.log(10_000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    return mx.array(np.exp(exponent.astype(np.float64)).astype(np.float32))


class TimestepEmbedding(nn.Module):
    """256 -> D -> D with SiLU: sinusoids (B, 256) to (B, D)."""

    def __init__(self, dim: int, bias: bool = True):
        super().__init__()
        self.linear_1 = Linear(TIME_CHANNELS, dim, bias=bias)
        self.act = SiLU()
        self.linear_2 = Linear(dim, dim, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(self.act(self.linear_1(x)))
