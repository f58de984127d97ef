"""Generates the weights of the text encoder, a conventionally initialised pre-norm decoder, and of its unused parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from precision_lab.model.qwen_image.config import TextEncoderConfig
from precision_lab.synthetic.shape import VisionConfig
from precision_lab.synthetic.tensors import Array, Source, Tensor, whole

OUTPUT_AMAX = 150.0
"""Published largest magnitude of the output."""

OUTPUT_BULK = 3.0
"""Standard deviation of the other channels of the output."""

MASSIVE_EMBEDDING = 3.0
"""Mean magnitude of the massive channels in the embedding of every token; all other values are N(0, 1)."""

BIAS = 0.3
"""Standard deviation of the query, key and value biases, whose outputs have unit size."""

SILU_PRODUCT_RMS = 0.6
"""Root mean square of silu(x) * y for independent x, y ~ N(0, 1)."""


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
    norm = OutputNorm.draw(source, width)
    yield from _vision(vision, width, source)
    yield _embedding("model.embed_tokens.weight", config.vocab_size, norm, source)
    for i in range(config.num_hidden_layers):
        yield from _layer(f"model.layers.{i}", config, source)
    yield whole("model.norm.weight", (width,), lambda: norm.weight(source, "model.norm.weight"))
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


def _layer(name: str, config: TextEncoderConfig, source: Source) -> Iterator[Tensor]:
    """Yields a layer with queries, keys, values and hidden units of unit size.

    Its two branches together add 1 / num_layers to the variance.
    """
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    branch = (2 * config.num_hidden_layers) ** -0.5
    yield source.tensor(f"{name}.input_layernorm.weight", (width,), 0.1, mean=1.0)
    for part, size in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        yield from source.linear(f"{name}.self_attn.{part}", size, width, std=width**-0.5, bias=BIAS)
    yield source.tensor(f"{name}.self_attn.o_proj.weight", (width, queries), branch * queries**-0.5)
    yield source.tensor(f"{name}.post_attention_layernorm.weight", (width,), 0.1, mean=1.0)
    for part in ("gate_proj", "up_proj"):
        yield source.tensor(f"{name}.mlp.{part}.weight", (inner, width), width**-0.5)
    yield source.tensor(f"{name}.mlp.down_proj.weight", (width, inner), branch / SILU_PRODUCT_RMS * inner**-0.5)


def _vision(config: VisionConfig, out: int, source: Source) -> Iterator[Tensor]:
    """Yields the tensors of the vision tower, which text-to-image does not run."""
    width, inner = config.hidden_size, config.intermediate_size
    merged = width * config.spatial_merge_size**2
    patch = (config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
    yield source.tensor("visual.patch_embed.proj.weight", (width, *patch), math.prod(patch) ** -0.5)
    for i in range(config.depth):
        name = f"visual.blocks.{i}"
        for norm in ("norm1", "norm2"):
            yield source.tensor(f"{name}.{norm}.weight", (width,), 0.1, mean=1.0)
        for part, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.gate_proj", inner, width),
            ("mlp.up_proj", inner, width),
            ("mlp.down_proj", width, inner),
        ):
            yield from source.linear(f"{name}.{part}", rows, columns, std=columns**-0.5, bias=0.1)
    yield source.tensor("visual.merger.ln_q.weight", (width,), 0.1, mean=1.0)
    yield from source.linear("visual.merger.mlp.0", merged, merged, std=merged**-0.5, bias=0.1)
    yield from source.linear("visual.merger.mlp.2", out, merged, std=merged**-0.5, bias=0.1)
