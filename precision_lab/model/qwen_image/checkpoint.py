"""Loads a checkpoint of Qwen-Image 1.x, from a folder or the Hugging Face Hub, and its components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model import paging
from precision_lab.model.casting import cast
from precision_lab.model.qwen_image.config import TextEncoderConfig, TransformerConfig, VAEConfig
from precision_lab.model.qwen_image.inflate import exponent, inflate_streams
from precision_lab.model.qwen_image.kinds import KINDS
from precision_lab.model.qwen_image.layout import layout
from precision_lab.model.qwen_image.pipeline import Pipeline
from precision_lab.model.qwen_image.prompt import Tokenizer
from precision_lab.model.qwen_image.sampler import Sampler
from precision_lab.model.qwen_image.text_encoder import TextEncoder
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.model.qwen_image.vae import VAE
from precision_lab.model.text_to_image import checkpoint
from precision_lab.model.text_to_image.checkpoint import Fit
from precision_lab.model.text_to_image.kinds import Kinds
from precision_lab.model.text_to_image.pipeline import Dtypes
from precision_lab.record.layout import Layout


@dataclass
class Checkpoint(checkpoint.Checkpoint):
    """A folder in the layout of Qwen/Qwen-Image; each component can be loaded separately.

    `inflate`, a power of two, multiplies the transformer's residual streams (see `inflate`).

    Raises InputError for what `text_to_image.checkpoint.Checkpoint` refuses, or if `inflate` is incompatible with
    `stream`.
    """

    kinds: ClassVar[Kinds] = KINDS
    modules: ClassVar[Mapping[str, type[nn.Module]]] = MappingProxyType(
        {"transformer": Transformer, "text_encoder": TextEncoder, "vae": VAE}
    )

    inflate: float = 1.0

    def __post_init__(self) -> None:
        if self.stream:
            paging.check(self.inflate)
        super().__post_init__()

    def transformer(self, dtype: mx.Dtype) -> Transformer:
        """The transformer, computing in `dtype`.

        Raises InputError if the inflated weights do not fit the dtype they are stored in, or `dtype`.
        """
        model = Transformer(self.transformer_config())
        self.load(model, "transformer", mx.float32, paged="transformer_blocks")  # keeps the stored dtype
        inflate_streams(model, self.inflate, dtype)
        cast(model, None, dtype)
        self.page(model, "transformer_blocks", "transformer", dtype)
        return model

    def text_encoder(self, dtype: mx.Dtype) -> TextEncoder:
        model = TextEncoder(self.config("text_encoder", TextEncoderConfig))
        return self.load(model, "text_encoder", dtype, TextEncoder.sanitize, "layers")

    def vae(self, dtype: mx.Dtype) -> VAE:
        model = VAE(self.config("vae", VAEConfig))
        return self.load(model, "vae", dtype, VAE.sanitize)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.folder / self.tokenizer_folder)

    def transformer_config(self) -> TransformerConfig:
        return self.config("transformer", TransformerConfig)

    def layout(self) -> Layout:
        """The layout of a run of this checkpoint."""
        return layout(self.transformer_config().num_layers)

    def pipeline(self, dtype: mx.Dtype) -> Pipeline:
        """All components, computing in `dtype`."""
        dtypes = Dtypes(dtype, dtype, dtype)
        return self.assembled(self.transformer(dtype), self.text_encoder(dtype), self.vae(dtype), dtypes)

    def assembled(self, transformer: Transformer, text_encoder: TextEncoder, vae: VAE, dtypes: Dtypes) -> Pipeline:
        """The pipeline of components that were loaded for `dtypes`.

        Raises InputError if they do not fit together.
        """
        config = self.transformer_config()
        self._check_fit(config, text_encoder.config, vae.config)
        return Pipeline(
            tokenizer=self.tokenizer(),
            text_encoder=text_encoder,
            transformer=transformer,
            vae=vae,
            sampler=Sampler(vae.config),
            scheduler=self.scheduler(),
            config=config,
            dtypes=dtypes,
        )

    def _check_fit(self, transformer: TransformerConfig, text: TextEncoderConfig, vae: VAEConfig) -> None:
        packed = transformer.patch_size**2 * vae.z_dim
        given = transformer.joint_attention_dim, transformer.in_channels, transformer.out_channels
        self.check_fit(
            Fit("joint_attention_dim", given[0], "hidden_size of the text encoder", text.hidden_size),
            Fit("in_channels", given[1], "what patch_size and z_dim of the VAE give", packed),
            Fit("out_channels", given[2], "z_dim of the VAE", vae.z_dim),
        )

    def altered(self) -> str:
        power = exponent(self.inflate)
        return f"inflate 2^{power}\n" if power else ""


def locate(source: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint (see `text_to_image.checkpoint.locate`)."""
    return checkpoint.locate(source, revision, Checkpoint.tokenizer_folder)
