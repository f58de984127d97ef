"""Generates the weights of the text encoder of Qwen-Image-2.1 and of its unused parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from precision_lab.errors import InputError
from precision_lab.model.qwen_image_21.config import TextEncoderConfig
from precision_lab.synthetic.language_body import Attention, layer, norm, norm_and_bias, patches, unit_linear
from precision_lab.synthetic.tensors import Source, Tensor


@dataclass(frozen=True)
class VisionConfig:
    """`vision_config` of Qwen3-VL. Text-to-image never runs this tower, but from_pretrained needs its weights."""

    depth: int = 27
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 16
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    num_position_embeddings: int = 2304
    deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)

    def __post_init__(self) -> None:
        # transformers rotates two halves, one for each image axis, so a head needs a multiple of four channels
        if self.hidden_size % self.num_heads or self.hidden_size // self.num_heads % 4:
            raise InputError(
                f"vision config: hidden_size {self.hidden_size} does not divide into {self.num_heads} heads of a "
                "multiple of 4 channels"
            )
        if not all(0 <= index < self.depth for index in self.deepstack_visual_indexes):
            raise InputError(
                f"vision config: deepstack_visual_indexes {list(self.deepstack_visual_indexes)}, expected blocks below "
                f"depth {self.depth}"
            )


def tensors(config: TextEncoderConfig, vision: VisionConfig, source: Source) -> Iterator[Tensor]:
    """Yields all tensors of Qwen3VLForConditionalGeneration under the names of the published files.

    Embeddings are N(0, 1), and the layers together double the variance.
    """
    width, body = config.hidden_size, "model.language_model"
    yield from _vision("model.visual", vision, width, source)
    yield source.tensor(f"{body}.embed_tokens.weight", (config.vocab_size, width), 1.0)
    for i in range(config.num_hidden_layers):
        yield from layer(f"{body}.layers.{i}", config, Attention(biases=False, head_norms=True), source)
    yield norm(f"{body}.norm", width, source)
    yield source.tensor("lm_head.weight", (config.vocab_size, width), width**-0.5)


def _vision(name: str, config: VisionConfig, out: int, source: Source) -> Iterator[Tensor]:
    """Yields the tensors of the vision tower, which text-to-image does not run."""
    width, inner = config.hidden_size, config.intermediate_size
    merged = width * config.spatial_merge_size**2
    kernel = (config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
    yield patches(f"{name}.patch_embed.proj", width, kernel, source)
    yield source.tensor(f"{name}.patch_embed.proj.bias", (width,), 0.1)
    yield source.tensor(f"{name}.pos_embed.weight", (config.num_position_embeddings, width), 1.0)
    for i in range(config.depth):
        block = f"{name}.blocks.{i}"
        for part in ("norm1", "norm2"):
            yield from norm_and_bias(f"{block}.{part}", width, source)
        for part, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.linear_fc1", inner, width),
            ("mlp.linear_fc2", width, inner),
        ):
            yield from unit_linear(f"{block}.{part}", rows, columns, source)
    mergers = [(f"{name}.deepstack_merger_list.{i}", merged) for i in range(len(config.deepstack_visual_indexes))]
    for merger, normed in [(f"{name}.merger", width), *mergers]:
        yield from norm_and_bias(f"{merger}.norm", normed, source)
        yield from unit_linear(f"{merger}.linear_fc1", merged, merged, source)
        yield from unit_linear(f"{merger}.linear_fc2", out, merged, source)
