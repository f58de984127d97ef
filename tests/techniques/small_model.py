"""A transformer of three blocks with biases of ordinary size, and its output as a NumPy array."""

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from precision_lab.instrument.sites import Components, walk
from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image.layout import layout
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.model.rotary import Grid
from precision_lab.techniques.base import applied

CONFIG = TransformerConfig(
    num_layers=3, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=40, axes_dims_rope=(8, 12, 12)
)


def small_model(seed=11):
    mx.random.seed(seed)
    model = Transformer(CONFIG)
    model.update(tree_map(lambda p: p if p.ndim > 1 else p + 0.3 * mx.random.normal(p.shape), model.parameters()))
    return model


def components(model):
    return Components({"transformer": model}, layout(len(model.transformer_blocks)))


def forward(model, dtype=mx.float32, seed=0, masked=False):
    rng = np.random.default_rng(seed)
    shapes = ((2, 15, 64), (2, 6, 40))
    latents, text = (mx.array(rng.standard_normal(s, dtype=np.float32)).astype(dtype) for s in shapes)
    mask = mx.array([[1] * 6, [1] * 4 + [0] * 2]) if masked else None
    return np.array(model(latents, mx.array([0.5, 0.25]), text, Grid(3, 5), mask).astype(mx.float32))


def rewritten(model, *techniques, dtype=mx.float32, **kwargs):
    """The output of the model with the techniques applied in this order."""
    with applied(components(model), {f"t{i}": t for i, t in enumerate(techniques)}):
        return forward(model, dtype, **kwargs)


def site(model, path):
    return next(s for s in walk(components(model)) if s.path == path)


def rel_l2(x, reference):
    x, reference = (np.asarray(a, dtype=np.float64) for a in (x, reference))
    return np.linalg.norm(x - reference) / np.linalg.norm(reference)
