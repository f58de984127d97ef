"""The VAE of Qwen-Image-2.1 for single images (AutoencoderKLQwenImage21 in diffusers); see `autoencoder`."""

from __future__ import annotations

import mlx.core as mx

from precision_lab.model.autoencoder import Autoencoder, Decoder, Encoder, Moments
from precision_lab.model.qwen_image_21.config import VAEConfig
from precision_lab.model.qwen_image_21.vae_stages import Patchify, ResidualDownBlock, ResidualUpBlock, Unpatchify


class VAE(Autoencoder):
    """Encodes RGBA pixels to latents at a sixteenth of the resolution and decodes latents to pixels."""

    def __init__(self, config: VAEConfig):
        down, up = config.down_stages(), config.up_stages()
        resnets = config.num_res_blocks
        super().__init__(
            Encoder(
                config.in_channels,
                [down[0].in_dim, down[-1].out_dim],
                [ResidualDownBlock(stage, resnets) for stage in down],
                config.z_dim,
            ),
            Decoder(
                config.z_dim,
                [up[0].in_dim, up[-1].out_dim],
                [ResidualUpBlock(stage, resnets + 1) for stage in up],
                config.out_channels,
            ),
            config.z_dim,
        )
        self.config = config
        if config.patch > 1:
            self.patchify = Patchify(config.patch)
            self.unpatchify = Unpatchify(config.patch)

    def encode(self, pixels: mx.array) -> Moments:
        return super().encode(self.patchify(pixels) if "patchify" in self else pixels)

    def decode(self, latents: mx.array) -> mx.array:
        pixels = super().decode(latents)
        return self.unpatchify(pixels) if "unpatchify" in self else pixels
