"""The VAE of Qwen-Image for single images (AutoencoderKLQwenImage in diffusers); see `autoencoder`."""

from __future__ import annotations

from itertools import pairwise

import mlx.nn as nn

from precision_lab.model.autoencoder import Autoencoder, Decoder, Encoder
from precision_lab.model.qwen_image.config import VAEConfig
from precision_lab.model.vae_blocks import AttentionBlock, Downsample, ResidualBlock, UpBlock


class VAE(Autoencoder):
    """Encodes RGB pixels to latents at an eighth of the resolution and decodes latents to pixels."""

    def __init__(self, config: VAEConfig):
        down, up = config.encoder_dims(config.base_dim), config.decoder_dims(config.base_dim)
        down_blocks = _down_blocks(down, config.num_res_blocks, config.attn_scales)
        super().__init__(
            Encoder(config.input_channels, down, down_blocks, config.z_dim),
            Decoder(config.z_dim, up, _up_blocks(up, config.num_res_blocks), config.input_channels),
            config.z_dim,
        )
        self.config = config


def _down_blocks(dims: list[int], num_res_blocks: int, attn_scales: tuple[float, ...]) -> list[nn.Module]:
    """All stages in one flat list, as in the checkpoint; each stage except the last halves the resolution."""
    blocks: list[nn.Module] = []
    for stage, (in_dim, out_dim) in enumerate(pairwise(dims)):
        for i in range(num_res_blocks):
            blocks.append(ResidualBlock(in_dim if i == 0 else out_dim, out_dim))
            if 0.5**stage in attn_scales:
                blocks.append(AttentionBlock(out_dim))
        if stage < len(dims) - 2:
            blocks.append(Downsample(out_dim))
    return blocks


def _up_blocks(dims: list[int], num_res_blocks: int) -> list[nn.Module]:
    """One block a stage; each stage except the last doubles the resolution and halves the channels."""
    last = len(dims) - 2
    return [
        UpBlock(in_dim if i == 0 else in_dim // 2, out_dim, num_res_blocks + 1, upsample=i < last)
        for i, (in_dim, out_dim) in enumerate(pairwise(dims))
    ]
