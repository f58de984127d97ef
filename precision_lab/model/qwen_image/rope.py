"""Rotary positions of the joint sequence on three axes (frame, row, column), centred on zero for the image."""

from __future__ import annotations

from functools import lru_cache

import mlx.nn as nn

from precision_lab.model.qwen_image.streams import Streams
from precision_lab.model.rotary import Grid, centred, diagonal, rotation


@lru_cache(maxsize=32)
def rotations(axes_dims: tuple[int, ...], grid: Grid, num_text: int) -> Streams:
    """Rotations of the image tokens, row by row, and of the text tokens: (tokens, C / 2) each, complex64 of modulus 1.

    C channels a head. The text continues along the diagonal of all axes, from max(h // 2, w // 2) in a grid of h rows
    and w columns (QwenEmbedRope with scale_rope in diffusers).
    """
    text = diagonal(max(grid.height // 2, grid.width // 2), num_text)
    return Streams(img=rotation(centred(grid, frame=0), axes_dims), txt=rotation(text, axes_dims))


class RotaryEmbedding(nn.Module):
    """Maps a grid and a number of text tokens to the rotations of their positions."""

    def __init__(self, axes_dims: tuple[int, ...]):
        super().__init__()
        self._axes_dims = axes_dims

    def __call__(self, grid: Grid, num_text: int) -> Streams:
        return rotations(self._axes_dims, grid, num_text)
