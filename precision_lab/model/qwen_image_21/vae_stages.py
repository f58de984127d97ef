"""Stages of the VAE of Qwen-Image-2.1: residual blocks and a shortcut around them that also changes the resolution.

For a single frame, a video's stage that halves the number of frames pads a frame of zeros in front, and a stage that
doubles it drops the first of its two frames.

B batch, H rows, W columns, C channels (last).
"""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.layers import Add
from precision_lab.model.qwen_image_21.config import Stage
from precision_lab.model.vae_blocks import Downsample, ResidualBlock, Upsample


class AverageDown(nn.Module):
    """Maps (B, H, W, C) to (B, H / space, W / space, C'): means of groups of C * time * space^2 / C' values.

    The values of a pixel are ordered by channel, frame, row and column. Sums are fp32, and a mean is rounded once to
    the dtype of x (QwenImage21AvgDown3D in diffusers).
    """

    def __init__(self, stage: Stage):
        super().__init__()
        self.stage = stage

    def __call__(self, x: mx.array) -> mx.array:
        _, out_dim, space, time = self.stage
        batch, rows, columns, channels = x.shape
        tiles = x.reshape(batch, rows // space, space, columns // space, space, channels)
        tiles = tiles.transpose(0, 1, 3, 5, 2, 4).flatten(4)[..., None, :]
        frames = mx.pad(tiles, [*[(0, 0)] * 4, (time - 1, 0), (0, 0)])
        groups = frames.reshape(*frames.shape[:3], out_dim, -1)
        return mx.mean(groups.astype(mx.float32), axis=-1).astype(x.dtype)


class DuplicateUp(nn.Module):
    """Maps (B, H, W, C) to (B, space * H, space * W, C'): each value is repeated C' * time * space^2 / C times.

    The repeated values become channels, frames, rows and columns of the result, in this order, and the last frame is
    kept (QwenImage21DupUp3D in diffusers). Exact in any dtype.
    """

    def __init__(self, stage: Stage):
        super().__init__()
        self.stage = stage

    def __call__(self, x: mx.array) -> mx.array:
        in_dim, out_dim, space, time = self.stage
        batch, rows, columns, _ = x.shape
        # not a gather of the kept values, which takes four to ten times as long on a CPU
        values = mx.repeat(x, out_dim * time * space**2 // in_dim, axis=-1)
        frames = values.reshape(batch, rows, columns, out_dim, time, space, space)
        tiles = frames[..., -1, :, :].transpose(0, 1, 4, 2, 5, 3)
        return tiles.reshape(batch, space * rows, space * columns, out_dim)


class ResidualDownBlock(nn.Module):
    """Residual blocks, followed by a downsampling unless the stage keeps the resolution, with an averaging shortcut."""

    def __init__(self, stage: Stage, num_resnets: int):
        super().__init__()
        dims = [stage.in_dim] + [stage.out_dim] * num_resnets
        self.resnets = [ResidualBlock(a, b) for a, b in pairwise(dims)]
        if stage.space > 1:
            self.downsampler = Downsample(stage.out_dim)
        self.avg_shortcut = AverageDown(stage)
        self.add = Add()

    def __call__(self, x: mx.array) -> mx.array:
        y = x
        for resnet in self.resnets:
            y = resnet(y)
        if "downsampler" in self:
            y = self.downsampler(y)
        return self.add(y, self.avg_shortcut(x))


class ResidualUpBlock(nn.Module):
    """Residual blocks; unless the stage keeps the resolution, also an upsampling and a duplicating shortcut."""

    def __init__(self, stage: Stage, num_resnets: int):
        super().__init__()
        dims = [stage.in_dim] + [stage.out_dim] * num_resnets
        self.resnets = [ResidualBlock(a, b) for a, b in pairwise(dims)]
        if stage.space > 1:
            self.upsampler = Upsample(stage.out_dim, stage.out_dim)
            self.avg_shortcut = DuplicateUp(stage)
            self.add = Add()

    def __call__(self, x: mx.array) -> mx.array:
        y = x
        for resnet in self.resnets:
            y = resnet(y)
        return self.add(self.upsampler(y), self.avg_shortcut(x)) if "upsampler" in self else y


class Patchify(nn.Module):
    """Moves squares of size x size pixels to channels: (B, H, W, C) to (B, H / size, W / size, C * size^2).

    The new channels are ordered by channel, column and row of a square.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def __call__(self, x: mx.array) -> mx.array:
        batch, rows, columns, channels = x.shape
        squares = x.reshape(batch, rows // self.size, self.size, columns // self.size, self.size, channels)
        return squares.transpose(0, 1, 3, 5, 4, 2).flatten(3)


class Unpatchify(nn.Module):
    """The inverse of `Patchify`."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def __call__(self, x: mx.array) -> mx.array:
        batch, rows, columns, _ = x.shape
        squares = x.reshape(batch, rows, columns, -1, self.size, self.size).transpose(0, 1, 5, 2, 4, 3)
        return squares.reshape(batch, rows * self.size, columns * self.size, -1)
