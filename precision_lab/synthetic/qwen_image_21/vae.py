"""Generates the weights of the VAE of Qwen-Image-2.1 (see `synthetic.autoencoder`)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from precision_lab.model.qwen_image_21.config import VAEConfig
from precision_lab.synthetic.autoencoder import Filters
from precision_lab.synthetic.tensors import Source, Tensor


def tensors(config: VAEConfig, source: Source) -> Iterator[Tensor]:
    """Yields all tensors of AutoencoderKLQwenImage21, whose convolutions have no axis of time."""
    filters = Filters(source, time=())
    yield from _encoder(config, filters)
    yield from filters.between(config.z_dim)
    yield from _decoder(config, filters)


def _encoder(config: VAEConfig, filters: Filters) -> Iterator[Tensor]:
    stages = config.down_stages()
    yield from filters.conv("encoder.conv_in", stages[0].in_dim, config.in_channels, 3, 1.0)
    for number, (before, after, space, time) in enumerate(stages):
        name = f"encoder.down_blocks.{number}"
        for i in range(config.num_res_blocks):
            yield from filters.residual(f"{name}.resnets.{i}", before if i == 0 else after, after)
        if space > 1:
            yield from filters.conv(f"{name}.downsampler.resample.1", after, after, 3, 1.0)
        if time > 1:
            yield from filters.conv(f"{name}.downsampler.time_conv", after, after, 1, 1.0)
    yield from filters.moments(stages[-1].out_dim, config.z_dim)


def _decoder(config: VAEConfig, filters: Filters) -> Iterator[Tensor]:
    stages = config.up_stages()
    width = stages[0].in_dim
    yield from filters.conv("decoder.conv_in", width, config.z_dim, 3, 1 / _latent_rms(config))
    yield from filters.middle("decoder.mid_block", width)
    for number, (before, after, space, time) in enumerate(stages):
        name = f"decoder.up_blocks.{number}"
        for i in range(config.num_res_blocks + 1):
            yield from filters.residual(f"{name}.resnets.{i}", before if i == 0 else after, after)
        if space > 1:
            yield from filters.conv(f"{name}.upsampler.resample.1", after, after, 3, 1.0)
        if time > 1:
            yield from filters.conv(f"{name}.upsampler.time_conv", 2 * after, after, 1, 1.0)
    yield from filters.pixels(stages[-1].out_dim, config.out_channels)


def _latent_rms(config: VAEConfig) -> float:
    """Root mean square of de-normalised latents."""
    return float(np.sqrt(np.mean(np.square([*config.latents_std, *config.latents_mean])) * 2))
