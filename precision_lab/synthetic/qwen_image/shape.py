"""The shape of a checkpoint of Qwen-Image 1.x: the configurations of its components and the growth of activations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from precision_lab.errors import InputError
from precision_lab.model.qwen_image.config import TextEncoderConfig, TransformerConfig, VAEConfig
from precision_lab.model.qwen_image.prompt import TEMPLATE
from precision_lab.model.text_to_image.scheduler import QWEN_IMAGE, SchedulerConfig
from precision_lab.synthetic import card, tokenizer
from precision_lab.synthetic.configs import diffusers, model_index
from precision_lab.synthetic.qwen_image import configs, text_encoder, transformer, vae
from precision_lab.synthetic.qwen_image.card import biases, growth
from precision_lab.synthetic.qwen_image.configs import COMPONENTS, DIFFUSERS_VERSION
from precision_lab.synthetic.qwen_image.growth import INPUT_AMAX
from precision_lab.synthetic.qwen_image.text_encoder import OutputNorm, VisionConfig
from precision_lab.synthetic.shape import SMALL_VOCABULARY, Shape
from precision_lab.synthetic.statistics import BiasStatistics
from precision_lab.synthetic.tensors import Source, Tensor

FINAL_AMAX = 5e7
"""Published largest magnitude of the image stream after 60 blocks (-51 M .. +57 M)."""

_LARGEST_FINAL_AMAX = 1e12


@dataclass(frozen=True)
class QwenImageShape(Shape):
    """The shape of a checkpoint to generate; the defaults are those of Qwen/Qwen-Image.

    growth: growth factor a block of the largest channels of both residual streams, which enter block 0 at INPUT_AMAX.
        With the default, 60 blocks reach FINAL_AMAX; fewer blocks end lower.

    Raises InputError for incompatible configurations and for values out of range.
    """

    template: ClassVar[str] = TEMPLATE
    tokenizer_folder: ClassVar[str] = "tokenizer"

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

    def tensors(self, source: Source) -> dict[str, list[Tensor]]:
        norm = OutputNorm.draw(source, self.text_encoder.hidden_size)
        return {
            "text_encoder": list(text_encoder.tensors(self.text_encoder, self.vision, source)),
            "transformer": list(transformer.tensors(self.transformer, self.growth, source, norm)),
            "vae": list(vae.tensors(self.vae, source)),
        }

    def configs(self) -> Mapping[str, Mapping[str, Any]]:
        def of_class(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
            return diffusers(COMPONENTS[part][1], DIFFUSERS_VERSION, values)

        return {
            "model_index.json": model_index("QwenImagePipeline", DIFFUSERS_VERSION, COMPONENTS),
            "scheduler/scheduler_config.json": of_class("scheduler", asdict(self.scheduler)),
            "text_encoder/config.json": configs.text_encoder(self.text_encoder, self.vision, self.vocabulary),
            "transformer/config.json": of_class("transformer", configs.transformer(self.transformer)),
            "vae/config.json": of_class("vae", {**asdict(self.vae), "dropout": 0.0}),
        }

    def write_tokenizer(self, folder: Path) -> None:
        tokenizer.write(folder, self.vocabulary)

    def card(self, seed: int, statistics: BiasStatistics) -> str:
        blocks = self.transformer
        return card.card(
            "Qwen-Image",
            "Qwen/Qwen-Image",
            "QwenImagePipeline",
            growth(self.growth, blocks.num_layers),
            seed,
            (blocks.num_layers, blocks.num_attention_heads, blocks.attention_head_dim),
            card.text_encoder(self.text_encoder, TextEncoderConfig()),
            self.vocabulary.size,
        ) + biases(statistics)


_NO_VISION = VisionConfig(depth=1, hidden_size=8, intermediate_size=8, num_heads=1, patch_size=2, temporal_patch_size=1)

MICRO = QwenImageShape(
    transformer=TransformerConfig(
        num_attention_heads=2, attention_head_dim=32, axes_dims_rope=(8, 12, 12), joint_attention_dim=64
    ),
    text_encoder=TextEncoderConfig(
        vocab_size=SMALL_VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    ),
    vision=_NO_VISION,
    vae=VAEConfig(base_dim=8, num_res_blocks=1),
)

TRANSFORMER = QwenImageShape(
    text_encoder=TextEncoderConfig(vocab_size=SMALL_VOCABULARY, intermediate_size=3584, num_hidden_layers=2),
    vision=_NO_VISION,
)

BLOCKS = QwenImageShape(
    transformer=TransformerConfig(num_layers=2, joint_attention_dim=64),
    text_encoder=MICRO.text_encoder,
    vision=_NO_VISION,
    vae=MICRO.vae,
)
