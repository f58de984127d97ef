"""The measured models: the published transformer, or a tiny one that runs in seconds on a CPU for smoke tests."""

from __future__ import annotations

from dataclasses import dataclass

from precision_lab.model.qwen_image.config import TransformerConfig

PIXELS_A_TOKEN = 16
"""Pixels per token along one side: 8 per latent, 2 latents per patch."""


@dataclass(frozen=True)
class Shape:
    """Model and sizes, for batch 1 and bfloat16. Sides are those of square pictures, in pixels."""

    name: str
    config: TransformerConfig
    text_tokens: int
    forward_sides: tuple[int, ...]
    token_sides: tuple[int, ...]
    depths: tuple[int, ...]
    piece_depths: tuple[int, int]
    """The two depths from whose difference the time of a block is derived."""
    chain_seconds: float
    """The minimum duration of a chain of one small piece."""
    big_matmul: int
    copy_elements: int
    min_rounds: int

    def tokens(self, side: int) -> int:
        return (side // PIXELS_A_TOKEN) ** 2


FULL = Shape(
    name="full",
    config=TransformerConfig(),
    text_tokens=64,
    forward_sides=(512, 1024),
    token_sides=(256, 384, 512, 768, 1024, 1280, 1536),
    depths=(1, 5, 15, 30, 60),
    piece_depths=(4, 20),
    chain_seconds=0.015,
    big_matmul=8192,
    copy_elements=1 << 28,
    min_rounds=10,
)

# two heads of 128 channels, because mflux hard-codes the channels per head
TINY = Shape(
    name="tiny",
    config=TransformerConfig(num_layers=3, num_attention_heads=2, joint_attention_dim=64),
    text_tokens=8,
    forward_sides=(64, 128),
    token_sides=(64, 96, 128),
    depths=(1, 2, 3),
    piece_depths=(1, 3),
    chain_seconds=0.002,
    big_matmul=256,
    copy_elements=1 << 18,
    min_rounds=3,
)

SHAPES = {shape.name: shape for shape in (FULL, TINY)}
