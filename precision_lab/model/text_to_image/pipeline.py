"""Text to image: the components of a checkpoint and the denoising loop, a generator of steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.errors import InputError
from precision_lab.instrument.scope import scope
from precision_lab.instrument.sites import Components
from precision_lab.model.rotary import Grid
from precision_lab.model.text_to_image.prompt import Tokenizer, Tokens
from precision_lab.model.text_to_image.sampler import Sampler, noise
from precision_lab.model.text_to_image.scheduler import SchedulerConfig
from precision_lab.model.text_to_image.settings import Settings
from precision_lab.record.layout import Layout


class Conditioning(Protocol):
    """What a transformer receives of a prompt, a named tuple: first its embeddings (B, T, J).

    The transformer is called as `transformer(latents, timestep, embeds, grid, *rest)`.
    """

    def __iter__(self) -> Iterator[Any]: ...


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
    batched: bool = False,
) -> Step:
    """Takes one step, from the first sigma in `levels` to the second; latents: (B, L, C).

    There is no guidance without `uncond`, unless `batched`: then `cond` is that of 2 B prompts, the negative ones last,
    and one forward computes both branches. Nothing is evaluated. Each forward runs inside a scope that names its step
    and sigma, and its branch where it computes one.
    """
    sigma, following = levels
    with scope(step=number, sigma=float(sigma)):
        timestep = sampler.timestep(mx.array(sigma), latents.dtype)
        timestep = mx.broadcast_to(timestep, (latents.shape[0],))
        if batched:
            both = _velocity(transformer, mx.tile(latents, (2, 1, 1)), mx.tile(timestep, 2), grid, cond)
            velocity = sampler.guidance(*mx.split(both, 2), guidance_scale)
        else:
            with scope(branch="cond"):
                velocity = _velocity(transformer, latents, timestep, grid, cond)
            if uncond is not None:
                with scope(branch="uncond"):
                    unguided = _velocity(transformer, latents, timestep, grid, uncond)
                velocity = sampler.guidance(velocity, unguided, guidance_scale)
        latents = sampler.euler_step(latents, velocity, mx.array(following - sigma))
    return Step(number, float(sigma), velocity, latents)


def _velocity(
    transformer: nn.Module, latents: mx.array, timestep: mx.array, grid: Grid, condition: Conditioning
) -> mx.array:
    embeds, *rest = condition
    velocity: mx.array = transformer(latents, timestep, embeds, grid, *rest)
    return velocity


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
class Pipeline(ABC):
    """The components of a text-to-image checkpoint, and the dtypes that they compute in."""

    settings: ClassVar[type[Settings]]
    """The class of the settings of a case."""

    tokenizer: Tokenizer
    text_encoder: Any
    transformer: Any
    vae: Any
    sampler: Sampler
    scheduler: SchedulerConfig
    dtypes: Dtypes

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """The layout of the components."""

    @property
    @abstractmethod
    def unit(self) -> int:
        """Pixels along one side of a token."""

    @property
    def multiple(self) -> int:
        """The pixels that a side of an image is a multiple of."""
        return self.unit

    @abstractmethod
    def condition(self, prompts: Sequence[str], settings: Any) -> Conditioning:
        """What the transformer receives of a batch of prompts, under the settings of this model."""

    @abstractmethod
    def pack(self, latents: mx.array) -> mx.array:
        """Latents (B, C, h, w) as tokens (B, L, C')."""

    @abstractmethod
    def unpack(self, tokens: mx.array, grid: Grid) -> mx.array:
        """Tokens (B, L, C') as channels-last latents (B, h, w, C)."""

    @abstractmethod
    def levels(self, settings: Settings, grid: Grid) -> np.ndarray:
        """The noise levels of the steps and 0: (steps + 1,), fp32. Raises InputError if the schedule does not fall."""

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
        return Components(modules, self.layout)

    def grid(self, height: int, width: int) -> Grid:
        """The token grid of an image with this size in pixels.

        Raises InputError if a side is not a multiple of `multiple`.
        """
        least = self.multiple
        for name, pixels in (("height", height), ("width", width)):
            if pixels < least or pixels % least:
                below = max(least, pixels // least * least)
                raise InputError(
                    f"image.{name} is {pixels}, expected a multiple of {least}. Nearest: {below} or {below + least}"
                )
        return Grid(height // self.unit, width // self.unit)

    def tokens(self, prompts: Sequence[str], padding: int = 0) -> Tokens:
        """The token ids of the prompts. Raises InputError for an id that the text encoder has no embedding of."""
        tokens = self.tokenizer(list(prompts), padding)
        size = self.text_encoder.embed_tokens.weight.shape[0]
        if not 0 <= tokens.ids.min() <= tokens.ids.max() < size:
            worst = tokens.ids.max() if tokens.ids.max() >= size else tokens.ids.min()
            raise InputError(f"tokenizer: it has the token id {worst}, but vocab_size of the text encoder is {size}")
        return tokens

    def noise(self, seed: int, grid: Grid) -> mx.array:
        """Packed latents (1, L, C) of pure noise, in `dtype`."""
        config = self.vae.config
        per_token = self.unit // config.scale_factor
        drawn = noise(seed, config.z_dim, grid.height * per_token, grid.width * per_token)
        return self.pack(mx.array(drawn)).astype(self.dtype)

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
        levels = self.levels(Settings(steps=steps), grid)
        return denoise(self.transformer, self.sampler, latents, levels, grid, cond, uncond, guidance_scale)

    def decode(self, latents: mx.array, grid: Grid) -> mx.array:
        """Decodes packed latents to pixel values (B, H, W, C) in [0, 255], fp32, unrounded.

        Non-finite latents give non-finite pixels.
        """
        unpacked = self.unpack(latents, grid).astype(self.dtypes.vae)
        pixels: mx.array = self.sampler.to_pixels(self.vae.decode(self.sampler.denormalize(unpacked)))
        return pixels
