"""Rotary positions on three axes (frame, row, column) for interleaved channel pairs.

L tokens, H heads, C channels a head.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

THETA = 10_000.0


class Grid(NamedTuple):
    """The numbers of rows and columns of image tokens, of 16x16 pixels each in the Qwen-Image models."""

    height: int
    width: int


def centred(grid: Grid, frame: int) -> np.ndarray:
    """Positions (frame, row, column) of the tokens of an image, row by row: (height * width, 3).

    Rows have positions -(height - height // 2) .. height // 2 - 1, and columns likewise.
    """
    rows = np.arange(grid.height) - (grid.height - grid.height // 2)
    columns = np.arange(grid.width) - (grid.width - grid.width // 2)
    return np.stack(np.meshgrid([frame], rows, columns, indexing="ij"), axis=-1).reshape(-1, 3)


def diagonal(start: int, num_tokens: int) -> np.ndarray:
    """Positions of text that advances on all axes together, from `start` on: (num_tokens, 3)."""
    return np.repeat(np.arange(start, start + num_tokens)[:, None], 3, axis=1)


def rotation(positions: np.ndarray, axes_dims: tuple[int, ...]) -> mx.array:
    """Rotations of the positions (L, 3), with `axes_dims` channels an axis: (L, C / 2) complex64 of modulus 1.

    Angles are fp32 products of the position and an fp32 frequency, as in diffusers. Their cos and sin are computed in
    float64 and rounded once.
    """
    angles = []
    for axis, dim in enumerate(axes_dims):
        exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        frequencies = np.float32(1) / np.power(THETA, exponents.astype(np.float64)).astype(np.float32)
        angles.append(positions[:, axis, None].astype(np.float32) * frequencies)
    return mx.array(np.exp(1j * np.concatenate(angles, axis=1).astype(np.float64)).astype(np.complex64))


class Rotary(nn.Module):
    """Rotates interleaved channel pairs as complex numbers, in fp32.

    x: (B, L, H, C), rotation: (L, C / 2) complex64. Returns the shape and dtype of x.
    """

    def __call__(self, x: mx.array, rotation: mx.array) -> mx.array:
        pairs = x.astype(mx.float32).view(mx.complex64)
        return (pairs * rotation[:, None, :]).view(mx.float32).astype(x.dtype)
