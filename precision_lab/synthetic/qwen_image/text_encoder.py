"""Generates the weights of the text encoder, a conventionally initialised pre-norm decoder, and of its unused parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from precision_lab.errors import InputError
from precision_lab.model.qwen_image.config import TextEncoderConfig
from precision_lab.synthetic.language_body import Attention, layer, norm, patches, unit_linear
from precision_lab.synthetic.tensors import Array, Source, Tensor, whole

OUTPUT_AMAX = 150.0
"""Published largest magnitude of the output."""

OUTPUT_BULK = 3.0
"""Standard deviation of the other channels of the output."""

MASSIVE_EMBEDDING = 3.0
"""Mean magnitude of the massive channels in the embedding of every token; all other values are N(0, 1)."""


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
class OutputNorm:
    """The sizes of the output channels. massive: positions (k,) of the massive ones; width: number of channels."""

    massive: np.ndarray
    width: int

    @classmethod
    def draw(cls, source: Source, width: int) -> OutputNorm:
        count = max(2, width // 1024)
        return cls(source.channels("massive channels of the text encoder", width, count), width)

    def sizes(self) -> Array:
        """Root mean square (width,) of each output channel."""
        values = np.full(self.width, OUTPUT_BULK, np.float32)
        values[self.massive] = 0.55 * OUTPUT_AMAX
        return values

    def weight(self, source: Source, name: str) -> Array:
        """Weight (width,) of the final RMSNorm, if the branches of all layers together double the variance."""
        before = np.full(self.width, math.sqrt(2), np.float32)
        before[self.massive] = math.sqrt(MASSIVE_EMBEDDING**2 + 1)
        before /= np.sqrt(np.square(before).mean())
        return self.sizes() / before * source.normal(name, (self.width,), 0.1, mean=1.0)

    def levelling(self, source: Source, name: str) -> Array:
        """Weight (width,) of a second RMSNorm that gives every channel unit size."""
        sizes = self.sizes()
        return np.sqrt(np.square(sizes).mean()) / sizes * source.normal(name, (self.width,), 0.1, mean=1.0)


def tensors(config: TextEncoderConfig, vision: VisionConfig, source: Source) -> Iterator[Tensor]:
    """Yields all tensors of Qwen2_5_VLForConditionalGeneration under the names of the published files."""
    width = config.hidden_size
    output = OutputNorm.draw(source, width)
    yield from _vision(vision, width, source)
    yield _embedding("model.embed_tokens.weight", config.vocab_size, output, source)
    for i in range(config.num_hidden_layers):
        yield from layer(f"model.layers.{i}", config, Attention(biases=True, head_norms=False), source)
    yield whole("model.norm.weight", (width,), lambda: output.weight(source, "model.norm.weight"))
    yield source.tensor("lm_head.weight", (config.vocab_size, width), width**-0.5)


def _embedding(name: str, vocabulary: int, norm: OutputNorm, source: Source) -> Tensor:
    plain = source.tensor(name, (vocabulary, norm.width), 1.0)
    offset = np.zeros(norm.width, np.float32)
    offset[norm.massive] = MASSIVE_EMBEDDING * source.signs(f"{name} massive", len(norm.massive))

    def draw() -> Iterator[Array]:
        for piece in plain.draw():
            piece += offset
            yield piece

    return Tensor(name, plain.shape, draw)


def _vision(config: VisionConfig, out: int, source: Source) -> Iterator[Tensor]:
    """Yields the tensors of the vision tower, which text-to-image does not run."""
    width, inner = config.hidden_size, config.intermediate_size
    merged = width * config.spatial_merge_size**2
    kernel = (config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
    yield patches("visual.patch_embed.proj", width, kernel, source)
    for i in range(config.depth):
        name = f"visual.blocks.{i}"
        for part in ("norm1", "norm2"):
            yield norm(f"{name}.{part}", width, source)
        for part, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.gate_proj", inner, width),
            ("mlp.up_proj", inner, width),
            ("mlp.down_proj", width, inner),
        ):
            yield from unit_linear(f"{name}.{part}", rows, columns, source)
    yield norm("visual.merger.ln_q", width, source)
    yield from unit_linear("visual.merger.mlp.0", merged, merged, source)
    yield from unit_linear("visual.merger.mlp.2", out, merged, source)
