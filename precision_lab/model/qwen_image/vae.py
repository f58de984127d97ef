"""The VAE of Qwen-Image for single images (AutoencoderKLQwenImage in diffusers).

B batch, H rows and W columns of pixels, h = H / 8 and w = W / 8 of latents, Z latent channels, C colour channels;
channels are last.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.layers import SiLU
from precision_lab.model.qwen_image.config import VAEConfig
from precision_lab.model.qwen_image.vae_blocks import (
    AttentionBlock,
    ChannelNorm,
    Conv2d,
    Downsample,
    MidBlock,
    ResidualBlock,
    UpBlock,
)


class Moments(NamedTuple):
    """The Gaussian an image is encoded to: (B, h, w, Z) each."""

    mean: mx.array
    logvar: mx.array


class Encoder(nn.Module):
    """(B, H, W, C) to (B, h, w, 2 Z)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        dims = [config.base_dim * m for m in (1, *config.dim_mult)]
        self.conv_in = Conv2d(config.input_channels, dims[0], 3, padding=1)
        self.down_blocks = _down_blocks(dims, config.num_res_blocks, config.attn_scales)
        self.mid_block = MidBlock(dims[-1])
        self.norm_out = ChannelNorm(dims[-1])
        self.nonlinearity = SiLU()
        self.conv_out = Conv2d(dims[-1], 2 * config.z_dim, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(self.nonlinearity(self.norm_out(x)))


def _down_blocks(dims: list[int], num_res_blocks: int, attn_scales: tuple[float, ...]) -> list[nn.Module]:
    """One flat list, as in the checkpoint: each stage halves the scale, the last one excepted."""
    blocks: list[nn.Module] = []
    for stage, (in_dim, out_dim) in enumerate(pairwise(dims)):
        for i in range(num_res_blocks):
            blocks.append(ResidualBlock(in_dim if i == 0 else out_dim, out_dim))
            if 0.5**stage in attn_scales:
                blocks.append(AttentionBlock(out_dim))
        if stage < len(dims) - 2:
            blocks.append(Downsample(out_dim))
    return blocks


class Decoder(nn.Module):
    """(B, h, w, Z) to (B, H, W, C), not clamped."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        dims = [config.base_dim * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
        last = len(dims) - 2
        self.conv_in = Conv2d(config.z_dim, dims[0], 3, padding=1)
        self.mid_block = MidBlock(dims[0])
        self.up_blocks = [
            # an upsampling has halved the channels
            UpBlock(in_dim if i == 0 else in_dim // 2, out_dim, config.num_res_blocks + 1, upsample=i < last)
            for i, (in_dim, out_dim) in enumerate(pairwise(dims))
        ]
        self.norm_out = ChannelNorm(dims[-1])
        self.nonlinearity = SiLU()
        self.conv_out = Conv2d(dims[-1], config.input_channels, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(self.nonlinearity(self.norm_out(x)))


class VAE(nn.Module):
    """Pixels to latents and back. The dtype of the input is that of the computation; weights are no wider."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = Conv2d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.post_quant_conv = Conv2d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)

    def encode(self, pixels: mx.array) -> Moments:
        """pixels: (B, H, W, C) in [-1, 1], H and W multiples of 8. The log-variance is clamped to [-30, 20]."""
        mean, logvar = mx.split(self.quant_conv(self.encoder(pixels)), 2, axis=-1)
        return Moments(mean, mx.clip(logvar, -30, 20))

    def decode(self, latents: mx.array) -> mx.array:
        """latents: (B, h, w, Z), de-normalised. Returns (B, H, W, C) in [-1, 1]."""
        return mx.clip(self.decoder(self.post_quant_conv(latents)), -1, 1)

    @staticmethod
    def sanitize(weights: dict[str, mx.array]) -> tuple[dict[str, mx.array], list[str]]:
        """Weights of a published checkpoint in the layout used here, and the sorted names left out.

        Left out are the temporal convolutions of the resamplers, which a first frame does not pass. A tensor of a rank
        that is not known is parameters as it is, for a strict loader to report.
        """
        ignored = {name for name in weights if ".time_conv." in name}
        parameters = {name: _to_image_layout(name, w) for name, w in weights.items() if name not in ignored}
        return parameters, sorted(ignored)


def _to_image_layout(name: str, weight: mx.array) -> mx.array:
    """(O, I, kT, kH, kW) or (O, I, kH, kW) to (O, kH, kW, I), the last temporal tap; gamma (C, 1, ..., 1) to (C,)."""
    if name.endswith(".gamma"):
        return weight.flatten() if weight.ndim > 1 and weight.size == weight.shape[0] else weight
    if weight.ndim == 5:
        weight = weight[:, :, -1]
    return weight.transpose(0, 2, 3, 1) if weight.ndim == 4 else weight
