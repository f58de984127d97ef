"""What is measured: the published transformer, or a tiny one that a CPU runs in seconds to try the program."""

from __future__ import annotations

from dataclasses import dataclass

from precision_lab.model.qwen_image.config import TransformerConfig

PIXELS_A_TOKEN = 16
"""Along one side: 8 a latent, 2 latents a patch."""


@dataclass(frozen=True)
class Shape:
    """Model and sizes. Batch 1 and bfloat16 throughout; sides are of square pictures, in pixels."""

    name: str
    config: TransformerConfig
    text_tokens: int
    forward_sides: tuple[int, ...]
    token_sides: tuple[int, ...]
    depths: tuple[int, ...]
    piece_depths: tuple[int, int]
    """Depths whose difference gives the time of a block."""
    chain_seconds: float
    """How long a chain of one small piece lasts at least."""
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

# two heads of 128 channels: mflux fixes the channels of a head
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
