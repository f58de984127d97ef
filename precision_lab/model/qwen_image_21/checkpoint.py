"""Loads a checkpoint of Qwen-Image-2.1, from a folder or the Hugging Face Hub, and its components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.model.qwen_image_21.config import TextEncoderConfig, TransformerConfig, VAEConfig
from precision_lab.model.qwen_image_21.kinds import KINDS
from precision_lab.model.qwen_image_21.layout import layout
from precision_lab.model.qwen_image_21.pipeline import Pipeline
from precision_lab.model.qwen_image_21.prompt import Tokenizer
from precision_lab.model.qwen_image_21.sampler import Sampler
from precision_lab.model.qwen_image_21.text_encoder import TextEncoder
from precision_lab.model.qwen_image_21.transformer import Transformer
from precision_lab.model.qwen_image_21.vae import VAE
from precision_lab.model.text_to_image import checkpoint
from precision_lab.model.text_to_image.checkpoint import Fit
from precision_lab.model.text_to_image.kinds import Kinds
from precision_lab.model.text_to_image.pipeline import Dtypes
from precision_lab.model.text_to_image.scheduler import explicit
from precision_lab.record.layout import Layout

_SCALE_FACTOR = 16
"""Pixels along one side of a latent, a constant in diffusers (vae_scale_factor of QwenImage21Pipeline)."""


@dataclass
class Checkpoint(checkpoint.Checkpoint):
    """A folder in the layout of Qwen/Qwen-Image-2.1 (see `text_to_image.checkpoint.Checkpoint`)."""

    kinds: ClassVar[Kinds] = KINDS
    modules: ClassVar[Mapping[str, type[nn.Module]]] = MappingProxyType(
        {"transformer": Transformer, "text_encoder": TextEncoder, "vae": VAE}
    )
    tokenizer_folder: ClassVar[str] = "processor"

    def transformer(self, dtype: mx.Dtype) -> Transformer:
        return self.load(Transformer(self.transformer_config()), "transformer", dtype, blocks="transformer_blocks")

    def text_encoder(self, dtype: mx.Dtype) -> TextEncoder:
        model = TextEncoder(self.config("text_encoder", TextEncoderConfig))
        return self.load(model, "text_encoder", dtype, TextEncoder.sanitize, "layers")

    def vae(self, dtype: mx.Dtype) -> VAE:
        return self.load(VAE(self.config("vae", VAEConfig)), "vae", dtype, VAE.sanitize)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.folder / self.tokenizer_folder)

    def transformer_config(self) -> TransformerConfig:
        return self.config("transformer", TransformerConfig)

    def sample_sigmas(self) -> tuple[float, ...] | None:
        """The noise levels in model_index.json, before the shift. Raises InputError unless they fall from at most 1."""
        stated = self.index.get("sample_sigmas")
        if stated is None:
            return None
        try:
            explicit(stated)
        except InputError as error:
            raise InputError(
                f"{self.folder / 'model_index.json'}: " + str(error).replace("sampler.sigmas", "sample_sigmas")
            ) from error
        return tuple(float(level) for level in stated)

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
        self._check_pictures(vae.config)
        config, latents = self.transformer_config(), vae.config.z_dim
        width = text_encoder.config.hidden_size
        self.check_fit(
            Fit("context_in_dim", config.context_in_dim, "hidden_size of the text encoder", width),
            Fit("in_channels", config.in_channels, "z_dim of the VAE", latents),
            Fit("out_channels", config.velocity_channels, "z_dim of the VAE", latents),
        )
        return Pipeline(
            tokenizer=self.tokenizer(),
            text_encoder=text_encoder,
            transformer=transformer,
            vae=vae,
            sampler=Sampler(vae.config),
            scheduler=self.scheduler(),
            config=config,
            dtypes=dtypes,
            sample_sigmas=self.sample_sigmas(),
        )

    def _check_pictures(self, config: VAEConfig) -> None:
        """Raises InputError for a VAE whose latents or pictures have another size than those of diffusers' pipeline."""
        file, colours = self.folder / "vae" / "config.json", config.out_channels // config.patch**2
        if config.scale_factor != _SCALE_FACTOR:
            raise InputError(
                f"{file}: temperal_downsample and patch_size give {config.scale_factor} pixels along a latent, "
                f"expected {_SCALE_FACTOR}"
            )
        if colours not in (3, 4):
            raise InputError(f"{file}: out_channels gives {colours} channels of a picture, expected 3 or 4")
