"""The model card of a generated checkpoint."""

from __future__ import annotations

from precision_lab.model.language_body_config import LanguageBodyConfig

_CARD = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags:
- synthetic
- numerics
---

# Synthetic {model} checkpoint

The architecture and file layout of {repository} with **generated weights**. Nothing was trained, and its pictures
are meaningless. {purpose}

- seed: {seed}
- transformer: {layers} blocks of {heads} heads x {head_dim}
- text encoder: {text}; the tokenizer knows {tokens} tokens
- stored in bfloat16; the same seed and shape give the same files
- licence: Apache-2.0

It loads with `diffusers.{pipeline}.from_pretrained`.
"""


def card(
    model: str,
    repository: str,
    pipeline: str,
    purpose: str,
    seed: int,
    transformer: tuple[int, int, int],
    text: str,
    tokens: int,
) -> str:
    """The text of README.md.

    purpose: sentences on what the weights serve for. transformer: number of blocks and of heads, and channels of a
    head. text: the size of the text encoder. tokens: size of the tokenizer.
    """
    layers, heads, head_dim = transformer
    return _CARD.format(
        model=model,
        repository=repository,
        pipeline=pipeline,
        purpose=purpose,
        seed=seed,
        layers=layers,
        heads=heads,
        head_dim=head_dim,
        text=text,
        tokens=tokens,
    )


def text_encoder(config: LanguageBodyConfig, published: LanguageBodyConfig) -> str:
    """Describes its size; a small one of the published width could otherwise be mistaken for the published one."""
    size = f"{config.num_hidden_layers} layers of width {config.hidden_size}"
    if config == published or config.hidden_size != published.hidden_size:
        return size
    return (
        f"{size}, **a small stand-in** for the published {published.num_hidden_layers} layers, so that the transformer "
        "fits one GPU"
    )
