"""The pipeline of Qwen-Image-2.1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import mlx.core as mx
import numpy as np

from precision_lab.model.qwen_image_21.config import TransformerConfig
from precision_lab.model.qwen_image_21.layout import layout
from precision_lab.model.qwen_image_21.prefix import Prefix
from precision_lab.model.qwen_image_21.settings import Settings
from precision_lab.model.qwen_image_21.text_encoder import TextEncoder
from precision_lab.model.qwen_image_21.transformer import Transformer
from precision_lab.model.qwen_image_21.vae import VAE
from precision_lab.model.rotary import Grid
from precision_lab.model.text_to_image import pipeline
from precision_lab.model.text_to_image.settings import Settings as Sampling
from precision_lab.record.layout import Layout


class Conditioning(NamedTuple):
    """Text embeddings (B, T, J), their mask (B, T) or None if no token is padding, and their prefix or None."""

    embeds: mx.array
    mask: mx.array | None
    prefix: Prefix | None = None


@dataclass
class Pipeline(pipeline.Pipeline):
    """The components of a checkpoint of Qwen-Image-2.1.

    sample_sigmas: the noise levels that its author chose, before the shift of the scheduler; None: evenly spaced.
    """

    settings: ClassVar[type[Sampling]] = Settings

    text_encoder: TextEncoder
    transformer: Transformer
    vae: VAE
    config: TransformerConfig
    sample_sigmas: tuple[float, ...] | None = None

    @property
    def layout(self) -> Layout:
        return layout(self.config.num_layers)

    @property
    def unit(self) -> int:
        return self.vae.config.scale_factor * self.config.patch_size

    @property
    def multiple(self) -> int:
        """The pixels of two tokens, which diffusers' pipeline rounds sides to."""
        return 2 * self.unit

    def condition(self, prompts: Sequence[str], settings: Settings) -> Conditioning:
        text = self.encode(prompts, settings.padding)
        if settings.prefix_cache == "none":
            return text
        prefix = self.transformer.prefill(text.embeds, text.mask)
        if settings.prefix_cache != "computed":
            prefix = prefix.kept_in(getattr(mx, settings.prefix_cache))
        return text._replace(prefix=prefix)

    def encode(self, prompts: Sequence[str], padding: int = 0) -> Conditioning:
        """Embeddings of the prompts, right-padded to the longest prompt and `padding` tokens more.

        The text encoder reads them left-padded, and without the embeddings of the system part they move to the left.
        """
        ids, mask = self.tokens(prompts, padding)
        padded = mx.array(mask) if not mask.all() else None
        hidden = self.text_encoder(mx.array(ids), padded, self.dtypes.text_encoder).astype(self.dtype)
        first = ids.shape[1] - mask.sum(axis=1) + self.tokenizer.dropped
        places = first[:, None] + np.arange(ids.shape[1] - self.tokenizer.dropped)
        kept = places < ids.shape[1]
        if kept.all():
            return Conditioning(hidden[:, self.tokenizer.dropped :], None)
        index = mx.array(np.minimum(places, ids.shape[1] - 1))
        moved = mx.take_along_axis(hidden, index[..., None], axis=1)
        there = mx.array(kept)
        return Conditioning(mx.where(there[..., None], moved, mx.zeros_like(moved)), there.astype(mx.int32))

    def levels(self, settings: Sampling, grid: Grid) -> np.ndarray:
        return settings.levels(self.scheduler, grid.height * grid.width, self.sample_sigmas)

    def pack(self, latents: mx.array) -> mx.array:
        return latents.flatten(2).transpose(0, 2, 1)

    def unpack(self, tokens: mx.array, grid: Grid) -> mx.array:
        return tokens.reshape(tokens.shape[0], *grid, tokens.shape[-1])
