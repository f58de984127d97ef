"""The VAE of Qwen-Image for single images (AutoencoderKLQwenImage in diffusers).

B batch, H rows and W columns of pixels, h = H / 8 rows and w = W / 8 columns of latents, Z latent channels, C colour
channels. Channels are the last axis.
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
    """Mean and log-variance of the Gaussian to which an image is encoded: (B, h, w, Z) each."""

    mean: mx.array
    logvar: mx.array


class Encoder(nn.Module):
    """Maps pixels (B, H, W, C) to moments (B, h, w, 2 Z)."""

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


class Decoder(nn.Module):
    """Maps latents (B, h, w, Z) to pixels (B, H, W, C), not clamped."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        dims = [config.base_dim * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
        last = len(dims) - 2
        self.conv_in = Conv2d(config.z_dim, dims[0], 3, padding=1)
        self.mid_block = MidBlock(dims[0])
        self.up_blocks = [
            # the upsampling before this block halves the channels
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
    """Encodes pixels to latents and decodes latents to pixels.

    The computation has the dtype of the input; the dtype of the weights must not be wider.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = Conv2d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.post_quant_conv = Conv2d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)

    def encode(self, pixels: mx.array) -> Moments:
        """pixels: (B, H, W, C) in [-1, 1], with H and W multiples of 8. Clamps the log-variance to [-30, 20]."""
        mean, logvar = mx.split(self.quant_conv(self.encoder(pixels)), 2, axis=-1)
        return Moments(mean, mx.clip(logvar, -30, 20))

    def decode(self, latents: mx.array) -> mx.array:
        """latents: (B, h, w, Z), de-normalised. Returns (B, H, W, C) in [-1, 1]."""
        return mx.clip(self.decoder(self.post_quant_conv(latents)), -1, 1)

    @staticmethod
    def sanitize(weights: dict[str, mx.array]) -> tuple[dict[str, mx.array], list[str]]:
        """Converts the weights of a published checkpoint to the layout used here.

        Also returns the sorted names that it left out: the temporal convolutions of the resamplers, which do not run
        for a first frame. Tensors of unexpected rank are returned unchanged, so that a strict loader reports them.
        """
        ignored = {name for name in weights if ".time_conv." in name}
        converted = {name: _to_image_layout(name, w) for name, w in weights.items() if name not in ignored}
        return converted, sorted(ignored)


def _to_image_layout(name: str, weight: mx.array) -> mx.array:
    """Converts a kernel (O, I, kT, kH, kW) or (O, I, kH, kW) to (O, kH, kW, I), and gamma (C, 1, ..., 1) to (C,).

    Only the last temporal tap is kept.
    """
    if name.endswith(".gamma"):
        return weight.flatten() if weight.ndim > 1 and weight.size == weight.shape[0] else weight
    if weight.ndim == 5:
        weight = weight[:, :, -1]
    return weight.transpose(0, 2, 3, 1) if weight.ndim == 4 else weight
