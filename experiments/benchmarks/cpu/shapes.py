"""The measured shapes, with generated weights and inputs. Does not import MLX, so that importers can choose a BLAS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from precision_lab.model.qwen_image.config import TransformerConfig


@dataclass(frozen=True)
class Shape:
    """`side` x `side` image tokens and `text` tokens through `config`; linears of (rows, inputs, outputs)."""

    config: TransformerConfig
    side: int
    text: int
    linears: tuple[tuple[int, int, int], ...]


def _config(layers: int, heads: int, head: int, axes: tuple[int, int, int]) -> TransformerConfig:
    return TransformerConfig(
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=head,
        axes_dims_rope=axes,
        joint_attention_dim=heads * head,
    )


SHAPES = {
    "full": Shape(
        _config(8, 8, 128, (16, 56, 56)), 32, 64, ((1024, 1024, 1024), (1024, 1024, 4096), (1024, 4096, 1024))
    ),
    "tiny": Shape(_config(2, 2, 32, (8, 12, 12)), 8, 7, ((64, 64, 256),)),
}
TIMESTEP = 0.5


def weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Normal weights of unit gain; biases of 0.1 and norm scales around 1. fp32, all representable in bfloat16."""
    rng = np.random.default_rng(seed)
    made = {}
    for name in sorted(shapes):
        x = rng.standard_normal(shapes[name], dtype=np.float32)
        x *= np.float32(0.1 if x.ndim == 1 else x.shape[-1] ** -0.5)
        if "norm" in name and x.ndim == 1 and name.endswith("weight"):
            x += 1
        made[name] = _to_bfloat16(x)
    return made


def inputs(shape: Shape, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Unit normal latents (1, L, 64) and text (1, T, J), representable in bfloat16."""
    rng = np.random.default_rng(seed)
    sizes = ((1, shape.side**2, shape.config.in_channels), (1, shape.text, shape.config.joint_attention_dim))
    latents, text = (_to_bfloat16(rng.standard_normal(size, dtype=np.float32)) for size in sizes)
    return latents, text


def _to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounds to bfloat16 towards zero, in place."""
    x.view(np.uint32)[...] &= np.uint32(0xFFFF0000)
    return x
