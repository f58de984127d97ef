"""Which transformer a file holds, from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_BLOCK = re.compile(r"transformer_blocks\.(\d{1,6})\.")


class Architecture(NamedTuple):
    """The pipeline of diffusers that the transformer belongs to, its number of blocks, and the width of its stream."""

    pipeline: str
    depth: int
    width: int

    def __str__(self) -> str:
        return f"{self.pipeline} with {self.depth} blocks, {self.width} wide"


class _Sign(NamedTuple):
    """Tensors that only one model has, together; the rows of the last are the width of the stream."""

    pipeline: str
    names: tuple[str, ...]


_SIGNS = (
    _Sign(
        "QwenImagePipeline",
        ("txt_norm.weight", "transformer_blocks.0.img_mod.1.weight", "transformer_blocks.0.attn.to_out.0.weight"),
    ),
    _Sign(
        "QwenImage21Pipeline",
        ("modulation.1.weight", "txt_in.text_norm.weight", "transformer_blocks.0.attn.to_out.0.weight"),
    ),
)


def identify(shapes: Mapping[str, tuple[int, ...]]) -> Architecture | None:
    """The transformer whose tensors have these shapes, by published name; None for one that is not known."""
    depth = 1 + max((int(found[1]) for name in shapes if (found := _BLOCK.match(name))), default=-1)
    for sign in _SIGNS:
        if all(name in shapes for name in sign.names) and len(shapes[sign.names[-1]]) == 2:
            return Architecture(sign.pipeline, depth, shapes[sign.names[-1]][0])
    return None
