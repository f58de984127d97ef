"""The model card of a generated checkpoint."""

from __future__ import annotations

from precision_lab.model.qwen_image.config import TextEncoderConfig
from precision_lab.synthetic.shape import INPUT_AMAX, Shape
from precision_lab.synthetic.statistics import BiasStatistics

_CARD = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags:
- synthetic
- numerics
---

# Synthetic Qwen-Image checkpoint

The architecture and file layout of Qwen/Qwen-Image with **generated weights**. Nothing was trained, and its pictures
are meaningless. It serves to study numerical precision without the 20 B model, because its activations grow through
depth as published for that model. The largest channels of the residual streams grow by a factor of {growth:.4f} a
block, from about {start:.0f} to about {end:.3g} after {layers} blocks.

- seed: {seed}
- transformer: {layers} blocks of {heads} heads x {head_dim}
- text encoder: {text}; the tokenizer knows {tokens} tokens
- stored in bfloat16; the same seed and shape give the same files
- licence: Apache-2.0

It loads with `diffusers.QwenImagePipeline.from_pretrained`.

## Biases of the transformer

Magnitudes as stored. Each entry is the range over the tensors of one kind (`*` is the block number). The median is
that of the ordinary channels. The largest value is that of the few massive channels, if the kind writes them.

| bias | tensors | median | largest |
|---|---|---|---|
{rows}
"""


def card(shape: Shape, seed: int, tokens: int, statistics: BiasStatistics) -> str:
    """The text of README.md. tokens: size of the tokenizer; statistics: those of the biases as written."""
    layers = shape.transformer.num_layers
    prefixes = ("img_in.", "txt_in.", "time_text_embed.", "transformer_blocks.", "norm_out.", "proj_out.")
    rows = (
        f"| {row.kind} | {row.tensors} | {_range(*row.median)} | {_range(*row.largest)} |"
        for prefix in prefixes
        for row in statistics.rows(prefix)
    )
    return _CARD.format(
        growth=shape.growth,
        start=INPUT_AMAX,
        end=INPUT_AMAX * shape.growth**layers,
        layers=layers,
        seed=seed,
        heads=shape.transformer.num_attention_heads,
        head_dim=shape.transformer.attention_head_dim,
        text=_text_encoder(shape.text_encoder),
        tokens=tokens,
        rows="\n".join(rows),
    )


def _text_encoder(config: TextEncoderConfig) -> str:
    """Describes its size; a small one of the published width could otherwise be mistaken for the published one."""
    published = TextEncoderConfig()
    size = f"{config.num_hidden_layers} layers of width {config.hidden_size}"
    if config == published or config.hidden_size != published.hidden_size:
        return size
    return (
        f"{size}, **a small stand-in** for the published {published.num_hidden_layers} layers, so that the transformer "
        "fits one GPU"
    )


def _range(low: float, high: float) -> str:
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
