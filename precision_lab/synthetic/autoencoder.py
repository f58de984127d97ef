"""Generates the parts that the VAEs have in common: random filters of unit gain.

A kernel is (time, height, width), or (height, width) where a single frame is all there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from precision_lab.synthetic.activations import SILU_RMS
from precision_lab.synthetic.tensors import Source, Tensor

BRANCH = 0.5
"""Size of the update that a residual block adds to a unit input."""

PIXEL_STD = 0.4
"""Standard deviation of the decoder's output, which is clamped to [-1, 1]."""

BIAS = 0.1


@dataclass(frozen=True)
class Filters:
    """Draws the tensors of a VAE. time: the axis of time in front of the sides of a kernel, as (3,), or ()."""

    source: Source
    time: tuple[int, ...]

    def conv(self, name: str, out: int, inner: int, side: int, gain: float) -> Iterator[Tensor]:
        """Yields a convolution over `side` x `side` pixels."""
        time = self.time if side > 1 else (1,) * len(self.time)
        return self.kernel(name, out, inner, (*time, side, side), gain)

    def kernel(self, name: str, out: int, inner: int, kernel: tuple[int, ...], gain: float) -> Iterator[Tensor]:
        """Yields a convolution that multiplies the standard deviation of one frame by `gain`.

        In a causal kernel over time, only the last tap reads a single frame; the others read padding.
        """
        std = gain * (inner * math.prod(kernel[-2:])) ** -0.5
        yield self.source.tensor(f"{name}.weight", (out, inner, *kernel), std)
        yield self.source.tensor(f"{name}.bias", (out,), BIAS * gain)

    def middle(self, name: str, width: int) -> Iterator[Tensor]:
        yield from self.residual(f"{name}.resnets.0", width, width)
        yield from self.attention(f"{name}.attentions.0", width)
        yield from self.residual(f"{name}.resnets.1", width, width)

    def residual(self, name: str, before: int, after: int) -> Iterator[Tensor]:
        yield self.norm(f"{name}.norm1", before, 3)
        yield from self.conv(f"{name}.conv1", after, before, 3, 1 / SILU_RMS)
        yield self.norm(f"{name}.norm2", after, 3)
        yield from self.conv(f"{name}.conv2", after, after, 3, BRANCH / SILU_RMS)
        if before != after:
            yield from self.conv(f"{name}.conv_shortcut", after, before, 1, 1.0)

    def attention(self, name: str, width: int) -> Iterator[Tensor]:
        yield self.norm(f"{name}.norm", width, 2)
        yield from self.kernel(f"{name}.to_qkv", 3 * width, width, (1, 1), 1.0)
        yield from self.kernel(f"{name}.proj", width, width, (1, 1), BRANCH)

    def norm(self, name: str, width: int, axes: int) -> Tensor:
        """The weight of an RMSNorm over channels, with `axes` further axes of size 1."""
        return self.source.tensor(f"{name}.gamma", (width, *(1,) * axes), 0.1, mean=1.0)

    def moments(self, width: int, z_dim: int) -> Iterator[Tensor]:
        """Yields the end of the encoder."""
        yield from self.middle("encoder.mid_block", width)
        yield self.norm("encoder.norm_out", width, 3)
        yield from self.conv("encoder.conv_out", 2 * z_dim, width, 3, 1 / SILU_RMS)

    def between(self, z_dim: int) -> Iterator[Tensor]:
        """Yields the convolutions after the encoder and before the decoder."""
        yield from self.conv("quant_conv", 2 * z_dim, 2 * z_dim, 1, 1.0)
        yield from self.conv("post_quant_conv", z_dim, z_dim, 1, 1.0)

    def pixels(self, width: int, channels: int) -> Iterator[Tensor]:
        """Yields the end of the decoder, whose output rarely leaves [-1, 1]."""
        yield self.norm("decoder.norm_out", width, 3)
        yield from self.conv("decoder.conv_out", channels, width, 3, PIXEL_STD / SILU_RMS)
