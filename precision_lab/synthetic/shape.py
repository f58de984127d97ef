"""The shape of a checkpoint to generate: the configurations of its components and the growth of its activations."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import MappingProxyType

from precision_lab.errors import InputError
from precision_lab.model.qwen_image.config import TextEncoderConfig, TransformerConfig, VAEConfig
from precision_lab.model.text_to_image.scheduler import QWEN_IMAGE, SchedulerConfig

INPUT_AMAX = 16.0
"""Published largest magnitude after `img_in`; both streams start here."""

FINAL_AMAX = 5e7
"""Published largest magnitude of the image stream after 60 blocks (-51 M .. +57 M)."""

_LARGEST_FINAL_AMAX = 1e12


@dataclass(frozen=True)
class VisionConfig:
    """`vision_config` of Qwen2.5-VL. Text-to-image never runs this tower, but from_pretrained needs its weights."""

    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2

    def __post_init__(self) -> None:
        # transformers rotates two halves, one for each image axis, so a head needs a multiple of four channels
        if self.hidden_size % self.num_heads or self.hidden_size // self.num_heads % 4:
            raise InputError(
                f"vision config: hidden_size {self.hidden_size} does not divide into {self.num_heads} heads of a "
                "multiple of 4 channels"
            )


@dataclass(frozen=True)
class Shape:
    """The shape of a checkpoint to generate; the defaults are those of Qwen/Qwen-Image.

    Use `dataclasses.replace` to vary a shape.

    growth: growth factor a block of the largest channels of both residual streams, which enter block 0 at INPUT_AMAX.
        With the default, 60 blocks reach FINAL_AMAX; fewer blocks end lower.
    max_shard_bytes: a larger component is stored as several files with an index.

    Raises InputError for incompatible configurations and for values out of range.
    """

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    scheduler: SchedulerConfig = QWEN_IMAGE
    growth: float = (FINAL_AMAX / INPUT_AMAX) ** (1 / 60)
    max_shard_bytes: int = 5_000_000_000

    def __post_init__(self) -> None:
        transformer, text = self.transformer, self.text_encoder
        if transformer.joint_attention_dim != text.hidden_size:
            raise InputError(
                f"shape: transformer joint_attention_dim {transformer.joint_attention_dim}, but text_encoder "
                f"hidden_size {text.hidden_size}; expected the same"
            )
        if not 1 < self.growth <= 2:
            raise InputError(f"shape: growth {self.growth}, expected a factor above 1 and at most 2")
        if math.log(INPUT_AMAX) + transformer.num_layers * math.log(self.growth) > math.log(_LARGEST_FINAL_AMAX):
            raise InputError(
                f"shape: growth {self.growth:.4g} over {transformer.num_layers} blocks ends above "
                f"{_LARGEST_FINAL_AMAX:.0e}; expected at most "
                f"{(_LARGEST_FINAL_AMAX / INPUT_AMAX) ** (1 / transformer.num_layers):.4g}"
            )
        packed = transformer.patch_size**2 * self.vae.z_dim
        if transformer.in_channels != packed or transformer.out_channels != self.vae.z_dim:
            raise InputError(
                f"shape: transformer in_channels {transformer.in_channels} and out_channels "
                f"{transformer.out_channels}, but the VAE's z_dim {self.vae.z_dim} needs {packed} and {self.vae.z_dim}"
            )
        if transformer.num_layers < 1 or text.num_hidden_layers < 1 or self.max_shard_bytes < 1:
            raise InputError("shape: num_layers, num_hidden_layers and max_shard_bytes must be at least 1")
        if transformer.dim < 8 or text.hidden_size < 8:
            raise InputError(f"shape: widths {transformer.dim} and {text.hidden_size}, expected at least 8")


_NO_VISION = VisionConfig(depth=1, hidden_size=8, intermediate_size=8, num_heads=1, patch_size=2, temporal_patch_size=1)

_SMALL_VOCABULARY = 1280
"""Large enough for the tokenizer of synthetic checkpoints."""

_MICRO = Shape(
    transformer=TransformerConfig(
        num_attention_heads=2, attention_head_dim=32, axes_dims_rope=(8, 12, 12), joint_attention_dim=64
    ),
    text_encoder=TextEncoderConfig(
        vocab_size=_SMALL_VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    ),
    vision=_NO_VISION,
    vae=VAEConfig(base_dim=8, num_res_blocks=1),
)

_TRANSFORMER = Shape(
    text_encoder=TextEncoderConfig(vocab_size=_SMALL_VOCABULARY, intermediate_size=3584, num_hidden_layers=2),
    vision=_NO_VISION,
)

PRESETS: MappingProxyType[str, Shape] = MappingProxyType(
    {"micro": _MICRO, "transformer": _TRANSFORMER, "full": Shape()}
)
"""Shapes by name.

`full`: the 20 B model, 57.7 GB. `transformer`: its transformer and VAE, and a text encoder of the same width with 2
layers instead of 28, 41.4 GB, for one GPU of 80 GB. `micro`: all 60 blocks at width 64, 20 MB.
"""
