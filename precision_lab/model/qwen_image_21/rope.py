"""Rotary positions of the sequence [text, target] on three axes (frame, row, column)."""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.model.rotary import Grid, centred, diagonal, rotation


@lru_cache(maxsize=32)
def rotations(axes_dims: tuple[int, ...], num_text: int, grid: Grid | None) -> mx.array:
    """Rotations of T text tokens and of the target's tokens, row by row: (T + height * width, C / 2) complex64.

    C channels a head. The text advances on all axes together, from 0 on. The target is at the frame that the text has
    reached, and its rows and columns are centred on zero (QwenImage21Rope in diffusers). Without a grid there is only
    the text, whose positions do not depend on the target.
    """
    positions = diagonal(0, num_text)
    if grid is not None:
        positions = np.concatenate([positions, centred(grid, frame=num_text)])
    return rotation(positions, axes_dims)


class RotaryEmbedding(nn.Module):
    """Maps a number of text tokens and the grid of the target, or None, to the rotations of their positions."""

    def __init__(self, axes_dims: tuple[int, ...]):
        super().__init__()
        self._axes_dims = axes_dims

    def __call__(self, num_text: int, grid: Grid | None) -> mx.array:
        return rotations(self._axes_dims, num_text, grid)
