"""Text to image: the components of a checkpoint and the denoising loop, a generator of steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.errors import InputError
from precision_lab.instrument.scope import scope
from precision_lab.instrument.sites import Components
from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image.layout import layout
from precision_lab.model.qwen_image.prompt import PREFIX_TOKENS, Tokenizer, Tokens
from precision_lab.model.qwen_image.sampler import Sampler, noise, pack, unpack
from precision_lab.model.qwen_image.scheduler import SchedulerConfig, sigmas
from precision_lab.model.qwen_image.text_encoder import TextEncoder
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.model.qwen_image.vae import VAE
from precision_lab.model.rotary import Grid


class Conditioning(NamedTuple):
    """Text embeddings (B, T, J) and their mask (B, T), which is None if no token is padding."""

    embeds: mx.array
    mask: mx.array | None


class Step(NamedTuple):
    """State after one step: its starting sigma, its velocity and the new latents, (B, L, C) each."""

    number: int
    sigma: float
    velocity: mx.array
    latents: mx.array


def denoise_step(
    transformer: nn.Module,
    sampler: Sampler,
    latents: mx.array,
    number: int,
    levels: tuple[float, float],
    grid: Grid,
    cond: Conditioning,
    uncond: Conditioning | None = None,
    guidance_scale: float = 1.0,
) -> Step:
    """Takes one step, from the first sigma in `levels` to the second; latents: (B, L, C).

    There is no guidance without `uncond`. Nothing is evaluated. Each forward runs inside a scope that names its step,
    sigma and branch.
    """
    sigma, following = levels
    with scope(step=number, sigma=float(sigma)):
        timestep = sampler.timestep(mx.array(sigma), latents.dtype)
        timestep = mx.broadcast_to(timestep, (latents.shape[0],))
        with scope(branch="cond"):
            velocity = transformer(latents, timestep, cond.embeds, grid, cond.mask)
        if uncond is not None:
            with scope(branch="uncond"):
                unguided = transformer(latents, timestep, uncond.embeds, grid, uncond.mask)
            velocity = sampler.guidance(velocity, unguided, guidance_scale)
        latents = sampler.euler_step(latents, velocity, mx.array(following - sigma))
    return Step(number, float(sigma), velocity, latents)


def denoise(
    transformer: nn.Module,
    sampler: Sampler,
    latents: mx.array,
    levels: np.ndarray,
    grid: Grid,
    cond: Conditioning,
    uncond: Conditioning | None = None,
    guidance_scale: float = 1.0,
) -> Iterator[Step]:
    """Steps through the sigmas `levels`, starting from packed noise `latents` (B, L, C).

    Nothing is evaluated: the caller decides when to evaluate a step.
    """
    for number, pair in enumerate(pairwise(levels)):
        step = denoise_step(transformer, sampler, latents, number, pair, grid, cond, uncond, guidance_scale)
        latents = step.latents
        yield step


class Dtypes(NamedTuple):
    """The dtypes of the activations of each component. Latents and text embeddings have that of the transformer."""

    transformer: mx.Dtype
    text_encoder: mx.Dtype
    vae: mx.Dtype


@dataclass
class Pipeline:
    """The components of a text-to-image checkpoint, and the dtypes that they compute in."""

    tokenizer: Tokenizer
    text_encoder: TextEncoder
    transformer: Transformer
    vae: VAE
    sampler: Sampler
    scheduler: SchedulerConfig
    config: TransformerConfig
    dtypes: Dtypes

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype of latents, text embeddings and all operations of sampling."""
        return self.dtypes.transformer

    @property
    def components(self) -> Components:
        """The addressable modules; each key is the part of an address before the colon."""
        modules: dict[str, nn.Module] = {
            "transformer": self.transformer,
            "text_encoder": self.text_encoder,
            "vae": self.vae,
            "pipeline": self.sampler,
        }
        return Components(modules, layout(self.config.num_layers))

    @property
    def unit(self) -> int:
        """Pixels along one side of a token."""
        return self.vae.config.scale_factor * self.config.patch_size

    def grid(self, height: int, width: int) -> Grid:
        """The token grid of an image with this size in pixels.

        Raises InputError if a side is not a multiple of `unit`.
        """
        unit = self.unit
        for name, pixels in (("height", height), ("width", width)):
            if pixels < unit or pixels % unit:
                below = max(unit, pixels // unit * unit)
                raise InputError(
                    f"image.{name} is {pixels}, expected a multiple of {unit}. Nearest: {below} or {below + unit}"
                )
        return Grid(height // unit, width // unit)

    def tokens(self, prompts: list[str], padding: int = 0) -> Tokens:
        """The token ids of the prompts. Raises InputError for an id that the text encoder has no embedding of."""
        tokens = self.tokenizer(prompts, padding)
        size = self.text_encoder.embed_tokens.weight.shape[0]
        if not 0 <= tokens.ids.min() <= tokens.ids.max() < size:
            worst = tokens.ids.max() if tokens.ids.max() >= size else tokens.ids.min()
            raise InputError(f"tokenizer: it has the token id {worst}, but vocab_size of the text encoder is {size}")
        return tokens

    def encode(self, prompts: list[str], max_tokens: int | None = None, padding: int = 0) -> Conditioning:
        """Embeddings of the prompts, right-padded to the longest prompt and `padding` tokens more.

        At most `max_tokens` of them are kept.
        """
        ids, mask = self.tokens(prompts, padding)
        padded = mx.array(mask) if not mask.all() else None
        kept = slice(PREFIX_TOKENS, None if max_tokens is None else PREFIX_TOKENS + max_tokens)
        hidden = self.text_encoder(mx.array(ids), padded, self.dtypes.text_encoder)[:, kept].astype(self.dtype)
        if padded is None:
            return Conditioning(hidden, None)
        padded = padded[:, kept]
        return Conditioning(mx.where(padded[..., None] != 0, hidden, mx.zeros_like(hidden)), padded)

    def noise(self, seed: int, grid: Grid) -> mx.array:
        """Packed latents (1, L, C) of pure noise, in `dtype`."""
        unit = self.config.patch_size
        channels = self.vae.config.z_dim
        return pack(mx.array(noise(seed, channels, grid.height * unit, grid.width * unit))).astype(self.dtype)

    def denoise(
        self,
        latents: mx.array,
        grid: Grid,
        steps: int,
        cond: Conditioning,
        uncond: Conditioning | None = None,
        guidance_scale: float = 1.0,
    ) -> Iterator[Step]:
        """Runs the function `denoise` with the components and the schedule of this checkpoint."""
        levels = sigmas(self.scheduler, steps, grid.height * grid.width)
        return denoise(self.transformer, self.sampler, latents, levels, grid, cond, uncond, guidance_scale)

    def decode(self, latents: mx.array, grid: Grid) -> mx.array:
        """Decodes packed latents to pixel values (B, H, W, 3) in [0, 255], fp32, unrounded.

        Non-finite latents give non-finite pixels.
        """
        unit = self.config.patch_size
        unpacked = unpack(latents, grid.height * unit, grid.width * unit).astype(self.dtypes.vae)
        return self.sampler.to_pixels(self.vae.decode(self.sampler.denormalize(unpacked)))
