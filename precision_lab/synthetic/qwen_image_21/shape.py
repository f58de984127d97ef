"""The shape of a checkpoint of Qwen-Image-2.1: the configurations of its components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from precision_lab.errors import InputError
from precision_lab.model.qwen_image_21.config import TextEncoderConfig, TransformerConfig, VAEConfig
from precision_lab.model.qwen_image_21.prompt import TEMPLATE
from precision_lab.model.text_to_image.scheduler import QWEN_IMAGE, SchedulerConfig
from precision_lab.synthetic import card, processor
from precision_lab.synthetic.configs import diffusers, model_index
from precision_lab.synthetic.processor import Patches
from precision_lab.synthetic.qwen_image_21 import configs, text_encoder, transformer, vae
from precision_lab.synthetic.qwen_image_21.configs import COMPONENTS, DIFFUSERS_VERSION
from precision_lab.synthetic.qwen_image_21.text_encoder import VisionConfig
from precision_lab.synthetic.shape import SMALL_VOCABULARY, Shape
from precision_lab.synthetic.statistics import BiasStatistics
from precision_lab.synthetic.tensors import Source, Tensor

_PURPOSE = """\
All weights are random and of unit gain. Unlike those of 1.x, they do not force
activations to grow through depth: no ranges of the published model are known. What it says about speed, memory and
rounding holds; what it says about range is that of random weights."""


@dataclass(frozen=True)
class QwenImage21Shape(Shape):
    """The shape of a checkpoint to generate; the defaults are those of Qwen/Qwen-Image-2.1, scheduler apart.

    sample_sigmas: the noise levels that the checkpoint states in model_index.json, if it states some, as Turbo does.

    Raises InputError for incompatible configurations and for values out of range.
    """

    template: ClassVar[str] = TEMPLATE
    tokenizer_folder: ClassVar[str] = "processor"

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    scheduler: SchedulerConfig = QWEN_IMAGE
    sample_sigmas: tuple[float, ...] | None = None
    max_shard_bytes: int = 5_000_000_000

    def __post_init__(self) -> None:
        blocks, text, z_dim = self.transformer, self.text_encoder, self.vae.z_dim
        if blocks.context_in_dim != text.hidden_size:
            raise InputError(
                f"shape: transformer context_in_dim {blocks.context_in_dim}, but text_encoder hidden_size "
                f"{text.hidden_size}; expected the same"
            )
        if blocks.in_channels != z_dim or blocks.velocity_channels != z_dim:
            raise InputError(
                f"shape: transformer in_channels {blocks.in_channels} and out_channels {blocks.velocity_channels}, "
                f"but the VAE's z_dim {z_dim} needs both to equal it"
            )
        if self.max_shard_bytes < 1:
            raise InputError(f"shape: max_shard_bytes {self.max_shard_bytes}, expected at least 1")

    def tensors(self, source: Source) -> dict[str, list[Tensor]]:
        return {
            "text_encoder": list(text_encoder.tensors(self.text_encoder, self.vision, source)),
            "transformer": list(transformer.tensors(self.transformer, source)),
            "vae": list(vae.tensors(self.vae, source)),
        }

    def configs(self) -> Mapping[str, Mapping[str, Any]]:
        def of_class(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
            return diffusers(COMPONENTS[part][1], DIFFUSERS_VERSION, values)

        stated = {} if self.sample_sigmas is None else {"sample_sigmas": list(self.sample_sigmas)}
        return {
            "model_index.json": model_index("QwenImage21Pipeline", DIFFUSERS_VERSION, {**COMPONENTS, **stated}),
            "scheduler/scheduler_config.json": of_class("scheduler", asdict(self.scheduler)),
            "text_encoder/config.json": configs.text_encoder(self.text_encoder, self.vision, self.vocabulary),
            "transformer/config.json": of_class("transformer", asdict(self.transformer)),
            "vae/config.json": of_class("vae", {**asdict(self.vae), "attn_scales": [], "dropout": 0.0}),
        }

    def write_tokenizer(self, folder: Path) -> None:
        vision = self.vision
        patches = Patches(vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
        processor.write(folder, self.vocabulary, patches)

    def card(self, seed: int, statistics: BiasStatistics) -> str:
        blocks = self.transformer
        return card.card(
            "Qwen-Image-2.1",
            "Qwen/Qwen-Image-2.1",
            "QwenImage21Pipeline",
            _PURPOSE,
            seed,
            (blocks.num_layers, blocks.num_attention_heads, blocks.attention_head_dim),
            card.text_encoder(self.text_encoder, TextEncoderConfig()),
            self.vocabulary.size,
        )


_NO_VISION = VisionConfig(
    depth=1,
    hidden_size=8,
    intermediate_size=8,
    num_heads=1,
    patch_size=2,
    temporal_patch_size=1,
    num_position_embeddings=4,
    deepstack_visual_indexes=(0,),
)

MICRO = QwenImage21Shape(
    transformer=TransformerConfig(
        num_attention_heads=2, attention_head_dim=32, axes_dims_rope=(8, 12, 12), context_in_dim=64
    ),
    text_encoder=TextEncoderConfig(
        vocab_size=SMALL_VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    ),
    vision=_NO_VISION,
    vae=VAEConfig(base_dim=4, decoder_base_dim=6, num_res_blocks=1),
)

TRANSFORMER = QwenImage21Shape(
    text_encoder=TextEncoderConfig(vocab_size=SMALL_VOCABULARY, intermediate_size=4096, num_hidden_layers=2),
    vision=_NO_VISION,
)
