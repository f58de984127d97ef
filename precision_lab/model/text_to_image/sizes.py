"""The memory that the weights of a checkpoint need, counted from the shapes of its modules; no array is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from precision_lab.model.text_to_image.checkpoint import Checkpoint

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


def sizes(kind: type[Checkpoint], configs: Mapping[str, Any]) -> Sizes:
    """The sizes that a run of a checkpoint with these configurations, by component, holds."""
    modules = {part: module(configs[part]) for part, module in kind.modules.items()}
    resident = sum(map(_nbytes, modules.values()))
    paged = [[_nbytes(block) for block in modules[part][name]] for part, name in _BLOCKS.items()]
    held = max(_AT_ONCE * max(blocks) for blocks in paged)
    return Sizes(resident, min(resident, resident - sum(map(sum, paged)) + held))


def _nbytes(module: nn.Module) -> int:
    return sum(2 * array.size for _, array in tree_flatten(module.parameters()))
