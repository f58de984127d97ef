"""The memory that the weights of a shape need, counted from the shapes of its tensors; no array is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.nn as nn
from mlx.utils import tree_flatten

from precision_lab.model.text_to_image.source import Source
from precision_lab.synthetic.shape import Shape

_BLOCKS = {"text_encoder": "layers", "transformer": "transformer_blocks"}
"""The list of each component that paging reads block by block."""
_AT_ONCE = 2
"""Blocks that paging holds: the one that is called and the next."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of bf16 weights that a run holds: `resident` of all modules, `streamed` with model.stream=true.

    Files have more: a run loads no vision tower, no output layer and one temporal tap of the VAE's convolutions.
    """

    resident: int
    streamed: int


def sizes(shape: Shape) -> Sizes:
    """The sizes that a run of a checkpoint of this shape holds."""
    modules = shape.modules()
    resident = sum(map(_nbytes, modules.values()))
    paged = [[_nbytes(block) for block in modules[part][name]] for part, name in _BLOCKS.items()]
    held = max(_AT_ONCE * max(blocks) for blocks in paged)
    return Sizes(resident, min(resident, resident - sum(map(sum, paged)) + held))


def shape_of(source: Source, published: Shape) -> Shape:
    """The shape of the checkpoint of a source, as its configurations state it.

    published: of the same model. Raises InputError for configurations that cannot be read.
    """
    parts = {part: source.opened.config(part, type(getattr(published, part))) for part in source.dtyped}
    return replace(published, **parts)  # type: ignore[type-var]


def _nbytes(module: nn.Module) -> int:
    return sum(2 * array.size for _, array in tree_flatten(module.parameters()))
