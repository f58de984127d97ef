"""The measured models: the published transformers, or tiny ones that run in seconds on a CPU for smoke tests.

A shape names its architecture, a folder of `architectures`. Each of its modules has what is particular to it for one
use, under the same names in every folder: `ours` (protocol `mlx_model.Ours`), `diffusers_peer`
(`diffusers_model.Peer`), `mflux_peer` (`mflux_model.Peer`), `pieces` (`pieces.groups`) and `recipes`
(`composition.Recipes`). `recipes` imports neither MLX nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image_21.config import TransformerConfig as TransformerConfig21

PIXELS_A_TOKEN = 16
"""Pixels per token along one side: 8 per latent and 2 latents per patch, or 16 per latent."""


@dataclass(frozen=True)
class Targets:
    """The project's targets on one H100, as upper limits. Keys of the first three are sides in pixels."""

    best_peer: Mapping[int, float] = field(default_factory=dict)
    """Time of `fast`, relative to the fastest arm of another library."""
    own_operations: Mapping[int, float] = field(default_factory=dict)
    """Time of `fast`, relative to the sum of its own products and attention."""
    peak_gb: Mapping[int, float] = field(default_factory=dict)
    """Peak memory of `fast`, in GB."""
    probes: Mapping[str, float] = field(default_factory=dict)
    """Time with the range catalogue, relative to the same model without it, by what is observed."""
    stored: Mapping[tuple[str, int], float] = field(default_factory=dict)
    """Time of `fast` with weights in a format, relative to bfloat16, by format and side."""
    stored_beyond_gb: float | None = None
    """Peak memory of `fast` with weights in fewer bits beyond these weights and what bfloat16 needs, in GB."""


@dataclass(frozen=True)
class Shape:
    """Model and sizes, for batch 1 and bfloat16. Sides are those of square pictures, in pixels."""

    name: str
    architecture: str
    config: Any
    """The TransformerConfig of the architecture."""
    text_width: int
    text_tokens: int
    forward_sides: tuple[int, ...]
    token_sides: tuple[int, ...]
    depths: tuple[int, ...]
    piece_depths: tuple[int, int]
    """The two depths from whose difference the time of a block is derived."""
    chain_seconds: float
    """The minimum duration of a chain of one small piece."""
    ring_bytes: float
    """The size of the copies between which the weights of a piece rotate."""
    big_matmul: int
    copy_elements: int
    min_rounds: int
    budget: float = 1.0
    """The share of each section's default seconds that is enough for this model."""
    targets: Targets = Targets()

    def tokens(self, side: int) -> int:
        return (side // PIXELS_A_TOKEN) ** 2

    def module(self, name: str) -> Any:
        """A module of the architecture's folder."""
        return import_module(f"experiments.benchmarks.gpu.architectures.{self.architecture}.{name}")


PROBE_TARGETS = {"blocks": 1.03, "every operation": 1.12}
FIVE_CACHES = 256e6
"""Bytes, five times an H100's cache: weights that rotate through them come from memory."""

_QWEN_IMAGE = TransformerConfig()
FULL = Shape(
    name="full",
    architecture="qwen_image",
    config=_QWEN_IMAGE,
    text_width=_QWEN_IMAGE.joint_attention_dim,
    text_tokens=64,
    forward_sides=(512, 1024),
    token_sides=(256, 384, 512, 768, 1024, 1280, 1536),
    depths=(1, 5, 15, 30, 60),
    piece_depths=(4, 20),
    chain_seconds=0.015,
    ring_bytes=FIVE_CACHES,
    big_matmul=8192,
    copy_elements=1 << 28,
    min_rounds=10,
    targets=Targets(
        best_peer={512: 0.5, 1024: 1.0},
        peak_gb={1024: 44},
        probes=PROBE_TARGETS,
        stored={("affine4", 512): 1.7, ("affine8", 512): 2.0, ("affine4", 1024): 1.25, ("affine8", 1024): 1.25},
        stored_beyond_gb=2,
    ),
)

# two heads of 128 channels, because mflux hard-codes the channels per head
_TINY = TransformerConfig(num_layers=3, num_attention_heads=2, joint_attention_dim=64)
TINY = Shape(
    name="tiny",
    architecture="qwen_image",
    config=_TINY,
    text_width=_TINY.joint_attention_dim,
    text_tokens=8,
    forward_sides=(64, 128),
    token_sides=(64, 96, 128),
    depths=(1, 2, 3),
    piece_depths=(1, 3),
    chain_seconds=0.002,
    ring_bytes=0,
    big_matmul=256,
    copy_elements=1 << 18,
    min_rounds=3,
)

_QWEN_IMAGE_21 = TransformerConfig21()
FULL_21 = Shape(
    name="full_21",
    architecture="qwen_image_21",
    config=_QWEN_IMAGE_21,
    text_width=_QWEN_IMAGE_21.context_in_dim,
    text_tokens=64,
    forward_sides=(512, 1024),
    token_sides=(256, 512, 768, 1024, 1536),
    depths=(1, 4, 16, 32),
    piece_depths=(4, 20),
    chain_seconds=0.015,
    ring_bytes=FIVE_CACHES,
    big_matmul=8192,
    copy_elements=1 << 28,
    min_rounds=10,
    budget=0.4,
    targets=Targets(
        best_peer={512: 0.90, 1024: 0.97},
        own_operations={512: 1.15, 1024: 1.15},
        peak_gb={512: 17, 1024: 17},
        probes=PROBE_TARGETS,
    ),
)

_TINY_21 = TransformerConfig21(num_layers=3, num_attention_heads=2, context_in_dim=64)
TINY_21 = Shape(
    name="tiny_21",
    architecture="qwen_image_21",
    config=_TINY_21,
    text_width=_TINY_21.context_in_dim,
    text_tokens=8,
    forward_sides=(64, 128),
    token_sides=(64, 96, 128),
    depths=(1, 2, 3),
    piece_depths=(1, 3),
    chain_seconds=0.002,
    ring_bytes=0,
    big_matmul=256,
    copy_elements=1 << 18,
    min_rounds=3,
)

SHAPES = {shape.name: shape for shape in (FULL, TINY, FULL_21, TINY_21)}
