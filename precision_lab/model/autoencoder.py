"""The frame of the VAEs (AutoencoderKLQwenImage and AutoencoderKLQwenImage21 in diffusers), for single images.

B batch, H rows and W columns of pixels, h rows and w columns of latents, Z latent channels, C colour channels. Channels
are the last axis.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.layers import SiLU
from precision_lab.model.vae_blocks import ChannelNorm, Conv2d, MidBlock


class Moments(NamedTuple):
    """Mean and log-variance of the Gaussian to which an image is encoded: (B, h, w, Z) each."""

    mean: mx.array
    logvar: mx.array


class Encoder(nn.Module):
    """Maps pixels (B, H, W, C) to moments (B, h, w, 2 Z).

    down_blocks: map dims[0] channels at H x W to dims[-1] channels at h x w.
    """

    def __init__(self, channels: int, dims: Sequence[int], down_blocks: list[nn.Module], z_dim: int):
        super().__init__()
        self.conv_in = Conv2d(channels, dims[0], 3, padding=1)
        self.down_blocks = down_blocks
        self.mid_block = MidBlock(dims[-1])
        self.norm_out = ChannelNorm(dims[-1])
        self.nonlinearity = SiLU()
        self.conv_out = Conv2d(dims[-1], 2 * z_dim, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(self.nonlinearity(self.norm_out(x)))


class Decoder(nn.Module):
    """Maps latents (B, h, w, Z) to pixels (B, H, W, C), not clamped.

    up_blocks: map dims[0] channels at h x w to dims[-1] channels at H x W.
    """

    def __init__(self, z_dim: int, dims: Sequence[int], up_blocks: list[nn.Module], channels: int):
        super().__init__()
        self.conv_in = Conv2d(z_dim, dims[0], 3, padding=1)
        self.mid_block = MidBlock(dims[0])
        self.up_blocks = up_blocks
        self.norm_out = ChannelNorm(dims[-1])
        self.nonlinearity = SiLU()
        self.conv_out = Conv2d(dims[-1], channels, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(self.nonlinearity(self.norm_out(x)))


class Autoencoder(nn.Module):
    """Encodes pixels to latents and decodes latents to pixels.

    The computation has the dtype of the input; the dtype of the weights must not be wider.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, z_dim: int):
        super().__init__()
        self.encoder = encoder
        self.quant_conv = Conv2d(2 * z_dim, 2 * z_dim, 1)
        self.post_quant_conv = Conv2d(z_dim, z_dim, 1)
        self.decoder = decoder

    def encode(self, pixels: mx.array) -> Moments:
        """pixels: (B, H, W, C) in [-1, 1], with H and W multiples of the scale factor.

        Clamps the log-variance to [-30, 20].
        """
        mean, logvar = mx.split(self.quant_conv(self.encoder(pixels)), 2, axis=-1)
        return Moments(mean, mx.clip(logvar, -30, 20))

    def decode(self, latents: mx.array) -> mx.array:
        """latents: (B, h, w, Z), de-normalised. Returns (B, H, W, C) in [-1, 1]."""
        return mx.clip(self.decoder(self.post_quant_conv(latents)), -1, 1)

    @staticmethod
    def sanitize(weights: MutableMapping[str, mx.array]) -> tuple[MutableMapping[str, mx.array], list[str]]:
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
