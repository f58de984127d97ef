"""Rotary positions of the joint sequence on three axes (frame, row, column), centred on zero for the image.

L image tokens in a grid of h rows and w columns, T text tokens, H heads, C channels a head.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.model.qwen_image.streams import Streams

THETA = 10_000.0


class Grid(NamedTuple):
    """The numbers of rows and columns of image tokens; a token is 2x2 latents or 16x16 pixels."""

    height: int
    width: int


@lru_cache(maxsize=32)
def rotations(axes_dims: tuple[int, ...], grid: Grid, num_text: int) -> Streams:
    """Rotations of the image tokens, row by row, and of the text tokens: (tokens, C / 2) each, complex64 of modulus 1.

    Rows have positions -(h - h // 2) .. h // 2 - 1, and columns likewise. The text continues along the diagonal of all
    axes, from max(h // 2, w // 2) (QwenEmbedRope with scale_rope in diffusers). Angles are fp32 products of the
    position and an fp32 frequency, as in the reference. Their cos and sin are computed in float64 and rounded once.
    """
    rows = np.arange(grid.height) - (grid.height - grid.height // 2)
    columns = np.arange(grid.width) - (grid.width - grid.width // 2)
    image = np.stack(np.meshgrid([0], rows, columns, indexing="ij"), axis=-1).reshape(-1, 3)
    start = max(grid.height // 2, grid.width // 2)
    text = np.repeat(np.arange(start, start + num_text)[:, None], 3, axis=1)
    return Streams(img=_rotation(image, axes_dims), txt=_rotation(text, axes_dims))


def _rotation(positions: np.ndarray, axes_dims: tuple[int, ...]) -> mx.array:
    angles = []
    for axis, dim in enumerate(axes_dims):
        exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        frequencies = np.float32(1) / np.power(THETA, exponents.astype(np.float64)).astype(np.float32)
        angles.append(positions[:, axis, None].astype(np.float32) * frequencies)
    return mx.array(np.exp(1j * np.concatenate(angles, axis=1).astype(np.float64)).astype(np.complex64))


class RotaryEmbedding(nn.Module):
    """Maps a grid and a number of text tokens to the rotations of their positions."""

    def __init__(self, axes_dims: tuple[int, ...]):
        super().__init__()
        self._axes_dims = axes_dims

    def __call__(self, grid: Grid, num_text: int) -> Streams:
        return rotations(self._axes_dims, grid, num_text)


class Rotary(nn.Module):
    """Rotates interleaved channel pairs as complex numbers, in fp32.

    x: (B, L, H, C), rotation: (L, C / 2) complex64. Returns the shape and dtype of x.
    """

    def __call__(self, x: mx.array, rotation: mx.array) -> mx.array:
        pairs = x.astype(mx.float32).view(mx.complex64)
        return (pairs * rotation[:, None, :]).view(mx.float32).astype(x.dtype)
