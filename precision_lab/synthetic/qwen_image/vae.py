"""Generates the weights of the VAE: random filters of unit gain, and an output that rarely leaves [-1, 1]."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from precision_lab.model.qwen_image.config import VAEConfig
from precision_lab.synthetic.autoencoder import Filters
from precision_lab.synthetic.tensors import Source, Tensor


def tensors(config: VAEConfig, source: Source) -> Iterator[Tensor]:
    """Yields all tensors of AutoencoderKLQwenImage."""
    filters = Filters(source, time=(3,))
    yield from _encoder(config, filters)
    yield from filters.between(config.z_dim)
    yield from _decoder(config, filters)


def _encoder(config: VAEConfig, filters: Filters) -> Iterator[Tensor]:
    widths = config.encoder_dims(config.base_dim)
    yield from filters.conv("encoder.conv_in", widths[0], config.input_channels, 3, 1.0)
    position, scale = 0, 1.0
    for stage, (before, after) in enumerate(pairwise(widths)):
        for i in range(config.num_res_blocks):
            yield from filters.residual(f"encoder.down_blocks.{position}", before if i == 0 else after, after)
            position += 1
            if scale in config.attn_scales:
                yield from filters.attention(f"encoder.down_blocks.{position}", after)
                position += 1
        if stage < len(config.temperal_downsample):
            name = f"encoder.down_blocks.{position}"
            yield from filters.kernel(f"{name}.resample.1", after, after, (3, 3), 1.0)
            if config.temperal_downsample[stage]:
                yield from filters.kernel(f"{name}.time_conv", after, after, (3, 1, 1), 1.0)
            position, scale = position + 1, scale / 2
    yield from filters.moments(widths[-1], config.z_dim)


def _decoder(config: VAEConfig, filters: Filters) -> Iterator[Tensor]:
    widths = config.decoder_dims(config.base_dim)
    upsample = tuple(reversed(config.temperal_downsample))
    yield from filters.conv("decoder.conv_in", widths[0], config.z_dim, 3, 0.5)
    yield from filters.middle("decoder.mid_block", widths[0])
    for stage, (before, after) in enumerate(pairwise(widths)):
        # the upsampler of the previous stage halves the channels
        entering = before if stage == 0 else before // 2
        for i in range(config.num_res_blocks + 1):
            yield from filters.residual(f"decoder.up_blocks.{stage}.resnets.{i}", entering if i == 0 else after, after)
        if stage < len(upsample):
            name = f"decoder.up_blocks.{stage}.upsamplers.0"
            yield from filters.kernel(f"{name}.resample.1", after // 2, after, (3, 3), 1.0)
            if upsample[stage]:
                yield from filters.kernel(f"{name}.time_conv", 2 * after, after, (3, 1, 1), 1.0)
    yield from filters.pixels(widths[-1], config.input_channels)
