"""Random transformers of Qwen-Image-2.1 in which all weights matter, and their outputs as NumPy arrays."""

from typing import NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from precision_lab.instrument.sites import Components
from precision_lab.model.qwen_image_21.config import TransformerConfig
from precision_lab.model.qwen_image_21.layout import layout
from precision_lab.model.qwen_image_21.transformer import Transformer
from precision_lab.model.rotary import Grid

CONFIG = TransformerConfig(
    num_layers=3, attention_head_dim=32, num_attention_heads=8, context_in_dim=48, axes_dims_rope=(8, 12, 12)
)
"""Wide enough for fused kernels."""


class Inputs(NamedTuple):
    """Latents (B, L, in_channels), timesteps (B,), text (B, T, J), the grid, and a mask (B, T) or None; fp32."""

    latents: mx.array
    timestep: mx.array
    text: mx.array
    grid: Grid
    mask: mx.array | None


def random_config(rng, layers):
    """Heads of 6 to 54 channels, divided among the axes at random."""
    axes = tuple(int(n) for n in 2 * rng.integers(1, 10, 3))
    heads, text, ratio = (int(rng.integers(*bounds)) for bounds in ((1, 6), (9, 70), (1, 5)))
    return TransformerConfig(
        num_layers=layers,
        attention_head_dim=sum(axes),
        num_attention_heads=heads,
        context_in_dim=text,
        mlp_ratio=ratio,
        axes_dims_rope=axes,
        eps=float(rng.choice([1e-6, 1e-5, 1e-3])),
    )


def random_model(seed=0, config=CONFIG):
    """Linears of unit gain, and norms that are not the identity."""
    model, rng = Transformer(config), np.random.default_rng(seed)

    def drawn(name, shape):
        values = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) > 1:
            return values / np.float32(np.sqrt(shape[-1]))
        return 0.3 * values + (0 if name.endswith("text_norm.weight") else 1)

    parameters = tree_flatten(model.parameters())
    model.load_weights([(name, mx.array(drawn(name, p.shape), mx.float32)) for name, p in parameters])
    return model


def random_inputs(rng, config=CONFIG, grid=(5, 7), batch=2, tokens=11, lengths=None):
    """Unit normal latents and text; `lengths` adds a mask of right padding."""

    def normal(*shape):
        return mx.array(rng.standard_normal(shape, dtype=np.float32))

    return Inputs(
        normal(batch, grid[0] * grid[1], config.in_channels),
        mx.array(rng.uniform(0.02, 1, batch).astype(np.float32)),
        normal(batch, tokens, config.context_in_dim),
        Grid(*grid),
        None if lengths is None else mx.array(np.arange(tokens) < np.array(lengths)[:, None]).astype(mx.int32),
    )


def rounded(inputs, dtype):
    """`inputs`, rounded to values that `dtype` represents."""
    return inputs._replace(
        **{name: getattr(inputs, name).astype(dtype).astype(mx.float32) for name in inputs._fields[:3]}
    )


def components(model):
    return Components({"transformer": model}, layout(len(model.transformer_blocks)))


def forward(model, inputs, dtype=mx.float32, cached=False):
    """The velocity as float64, in one pass or after a pass of the prefix."""
    latents, timestep, text = (a.astype(dtype) for a in inputs[:3])
    prefix = model.prefill(text, inputs.mask) if cached else None
    out = model(latents, timestep, text, inputs.grid, inputs.mask, prefix)
    assert out.dtype == dtype
    return np.array(out.astype(mx.float32)).astype(np.float64)
