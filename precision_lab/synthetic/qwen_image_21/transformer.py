"""Generates the weights of the transformer of Qwen-Image-2.1: conventional ones of unit gain, with no forced growth.

No linear has a bias. Scales and gates therefore come from the timestep embedding alone, by the one modulation that all
blocks share: each channel has its own, of either sign, and the stream grows by what the gates let through.
"""

from __future__ import annotations

from collections.abc import Iterator

from precision_lab.model.qwen_image_21.config import TransformerConfig
from precision_lab.synthetic.activations import GELU_RMS, SILU_PRODUCT_RMS, SILU_RMS
from precision_lab.synthetic.tensors import Array, Source, Tensor
from precision_lab.synthetic.timestep import timestep_embedding

SCALE = 0.3
"""Standard deviation over channels of the scales, by which a normalised stream is multiplied as 1 + scale."""

GATE = 0.6
"""The same of the gates before their tanh."""

VELOCITY_RMS = 0.9
"""Root mean square of the output without the final scale."""


def tensors(config: TransformerConfig, source: Source) -> Iterator[Tensor]:
    """Yields all tensors of QwenImage21Transformer2DModel, in the order of a forward pass."""
    width, text = config.dim, config.context_in_dim
    yield source.tensor("img_in.weight", (width, config.in_channels), config.in_channels**-0.5)
    yield source.tensor("txt_in.text_norm.weight", (text,), 0.1)  # the norm adds 1
    yield source.tensor("txt_in.in_layer.weight", (width, text), text**-0.5)
    yield source.tensor("txt_in.out_layer.weight", (width, width), 1 / GELU_RMS * width**-0.5)
    yield from timestep_embedding(width, source, biases=False)
    yield _modulation("modulation.1.weight", (SCALE, GATE, SCALE, GATE), width, source)
    for i in range(config.num_layers):
        yield from _block(f"transformer_blocks.{i}", config, source)
    yield _modulation("norm_out.linear.weight", (SCALE,), width, source)
    yield source.tensor("proj_out.weight", (config.velocity_channels, width), VELOCITY_RMS * width**-0.5)


def _block(name: str, config: TransformerConfig, source: Source) -> Iterator[Tensor]:
    width, hidden = config.dim, config.hidden
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        yield source.tensor(f"{name}.attn.{part}.weight", (width, width), width**-0.5)
    for norm in ("norm_q", "norm_k"):
        yield source.tensor(f"{name}.attn.{norm}.weight", (config.attention_head_dim,), 0.15, mean=1.1)
    for part in ("gate_layer", "proj"):
        yield source.tensor(f"{name}.img_mlp.{part}.weight", (hidden, width), width**-0.5)
    yield source.tensor(f"{name}.img_mlp.out.weight", (width, hidden), 1 / SILU_PRODUCT_RMS * hidden**-0.5)


def _modulation(name: str, sizes: tuple[float, ...], width: int, source: Source) -> Tensor:
    """A linear that maps the timestep embedding to one chunk of `width` channels for each of `sizes`."""

    def draw() -> Iterator[Array]:
        for number, size in enumerate(sizes):
            yield source.normal(f"{name} chunk {number}", (width, width), size / SILU_RMS * width**-0.5)

    return Tensor(name, (len(sizes) * width, width), draw)
