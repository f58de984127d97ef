"""The pipeline of Qwen-Image 1.x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import mlx.core as mx
import numpy as np

from precision_lab.model.qwen_image import sampler
from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image.layout import layout
from precision_lab.model.qwen_image.settings import Settings
from precision_lab.model.qwen_image.text_encoder import TextEncoder
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.model.qwen_image.vae import VAE
from precision_lab.model.rotary import Grid
from precision_lab.model.text_to_image import pipeline
from precision_lab.model.text_to_image.settings import Settings as Sampling
from precision_lab.record.layout import Layout


class Conditioning(NamedTuple):
    """Text embeddings (B, T, J) and their mask (B, T), which is None if no token is padding."""

    embeds: mx.array
    mask: mx.array | None


@dataclass
class Pipeline(pipeline.Pipeline):
    """The components of a checkpoint of Qwen-Image 1.x."""

    settings: ClassVar[type[Sampling]] = Settings

    text_encoder: TextEncoder
    transformer: Transformer
    vae: VAE
    config: TransformerConfig

    @property
    def layout(self) -> Layout:
        return layout(self.config.num_layers)

    @property
    def unit(self) -> int:
        return self.vae.config.scale_factor * self.config.patch_size

    def condition(self, prompts: Sequence[str], settings: Settings) -> Conditioning:
        return self.encode(prompts, settings.max_sequence_length, settings.padding)

    def encode(self, prompts: Sequence[str], max_tokens: int | None = None, padding: int = 0) -> Conditioning:
        """Embeddings of the prompts, right-padded to the longest prompt and `padding` tokens more.

        At most `max_tokens` of them are kept.
        """
        (ids, mask), dropped = self.tokens(prompts, padding), self.tokenizer.dropped
        padded = mx.array(mask) if not mask.all() else None
        kept = slice(dropped, None if max_tokens is None else dropped + max_tokens)
        hidden = self.text_encoder(mx.array(ids), padded, self.dtypes.text_encoder)[:, kept].astype(self.dtype)
        if padded is None:
            return Conditioning(hidden, None)
        padded = padded[:, kept]
        return Conditioning(mx.where(padded[..., None] != 0, hidden, mx.zeros_like(hidden)), padded)

    def levels(self, settings: Sampling, grid: Grid) -> np.ndarray:
        return settings.levels(self.scheduler, grid.height * grid.width)

    def pack(self, latents: mx.array) -> mx.array:
        return sampler.pack(latents)

    def unpack(self, tokens: mx.array, grid: Grid) -> mx.array:
        return sampler.unpack(tokens, grid.height * self.config.patch_size, grid.width * self.config.patch_size)
