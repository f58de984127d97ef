"""Generates the weights of the VAE: random filters of unit gain, and an output that rarely leaves [-1, 1]."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from precision_lab.model.qwen_image.config import VAEConfig
from precision_lab.synthetic.tensors import Source, Tensor

SILU_RMS = 0.6
"""Root mean square of silu(x) for x ~ N(0, 1)."""

BRANCH = 0.5
"""Size of the update that a residual block adds to a unit input."""

PIXEL_STD = 0.4
"""Standard deviation of the decoder's output, which is clamped to [-1, 1]."""

BIAS = 0.1


def tensors(config: VAEConfig, source: Source) -> Iterator[Tensor]:
    """Yields all tensors of AutoencoderKLQwenImage."""
    z = config.z_dim
    yield from _encoder(config, source)
    yield from _conv("quant_conv", 2 * z, 2 * z, (1, 1, 1), 1.0, source)
    yield from _conv("post_quant_conv", z, z, (1, 1, 1), 1.0, source)
    yield from _decoder(config, source)


def _encoder(config: VAEConfig, source: Source) -> Iterator[Tensor]:
    widths = [config.base_dim * m for m in (1, *config.dim_mult)]
    yield from _conv("encoder.conv_in", widths[0], config.input_channels, (3, 3, 3), 1.0, source)
    position, scale = 0, 1.0
    for stage, (before, after) in enumerate(pairwise(widths)):
        for i in range(config.num_res_blocks):
            name = f"encoder.down_blocks.{position}"
            yield from _residual(name, before if i == 0 else after, after, source)
            position += 1
            if scale in config.attn_scales:
                yield from _attention(f"encoder.down_blocks.{position}", after, source)
                position += 1
        if stage < len(config.temperal_downsample):
            name = f"encoder.down_blocks.{position}"
            yield from _conv(f"{name}.resample.1", after, after, (3, 3), 1.0, source)
            if config.temperal_downsample[stage]:
                yield from _conv(f"{name}.time_conv", after, after, (3, 1, 1), 1.0, source)
            position, scale = position + 1, scale / 2
    yield from _middle("encoder.mid_block", widths[-1], source)
    yield _norm("encoder.norm_out", widths[-1], 3, source)
    yield from _conv("encoder.conv_out", 2 * config.z_dim, widths[-1], (3, 3, 3), 1 / SILU_RMS, source)


def _decoder(config: VAEConfig, source: Source) -> Iterator[Tensor]:
    widths = [config.base_dim * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
    upsample = tuple(reversed(config.temperal_downsample))
    yield from _conv("decoder.conv_in", widths[0], config.z_dim, (3, 3, 3), 0.5, source)
    yield from _middle("decoder.mid_block", widths[0], source)
    for stage, (before, after) in enumerate(pairwise(widths)):
        # the upsampler of the previous stage halves the channels
        entering = before if stage == 0 else before // 2
        for i in range(config.num_res_blocks + 1):
            name = f"decoder.up_blocks.{stage}.resnets.{i}"
            yield from _residual(name, entering if i == 0 else after, after, source)
        if stage < len(upsample):
            name = f"decoder.up_blocks.{stage}.upsamplers.0"
            yield from _conv(f"{name}.resample.1", after // 2, after, (3, 3), 1.0, source)
            if upsample[stage]:
                yield from _conv(f"{name}.time_conv", 2 * after, after, (3, 1, 1), 1.0, source)
    yield _norm("decoder.norm_out", widths[-1], 3, source)
    gain = PIXEL_STD / SILU_RMS
    yield from _conv("decoder.conv_out", config.input_channels, widths[-1], (3, 3, 3), gain, source)


def _middle(name: str, width: int, source: Source) -> Iterator[Tensor]:
    yield from _residual(f"{name}.resnets.0", width, width, source)
    yield from _attention(f"{name}.attentions.0", width, source)
    yield from _residual(f"{name}.resnets.1", width, width, source)


def _residual(name: str, before: int, after: int, source: Source) -> Iterator[Tensor]:
    yield _norm(f"{name}.norm1", before, 3, source)
    yield from _conv(f"{name}.conv1", after, before, (3, 3, 3), 1 / SILU_RMS, source)
    yield _norm(f"{name}.norm2", after, 3, source)
    yield from _conv(f"{name}.conv2", after, after, (3, 3, 3), BRANCH / SILU_RMS, source)
    if before != after:
        yield from _conv(f"{name}.conv_shortcut", after, before, (1, 1, 1), 1.0, source)


def _attention(name: str, width: int, source: Source) -> Iterator[Tensor]:
    yield _norm(f"{name}.norm", width, 2, source)
    yield from _conv(f"{name}.to_qkv", 3 * width, width, (1, 1), 1.0, source)
    yield from _conv(f"{name}.proj", width, width, (1, 1), BRANCH, source)


def _norm(name: str, width: int, axes: int, source: Source) -> Tensor:
    """The weight of an RMSNorm over channels, with `axes` further axes of size 1."""
    return source.tensor(f"{name}.gamma", (width, *(1,) * axes), 0.1, mean=1.0)


def _conv(name: str, out: int, inner: int, kernel: tuple[int, ...], gain: float, source: Source) -> Iterator[Tensor]:
    """Yields a convolution that multiplies the standard deviation of one frame by `gain`.

    In a causal kernel over time, only the last tap reads a single frame; the others read padding.
    """
    std = gain * (inner * math.prod(kernel[-2:])) ** -0.5
    yield source.tensor(f"{name}.weight", (out, inner, *kernel), std)
    yield source.tensor(f"{name}.bias", (out,), BIAS * gain)
