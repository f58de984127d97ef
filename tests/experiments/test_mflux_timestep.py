"""The study of mflux's timestep without mflux: its weights, its figure, and what its technique mends."""

import math
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from omegaconf import OmegaConf

from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.timestep import frequencies
from precision_lab.techniques.base import applied
from precision_lab.techniques.float32 import Float32
from tests.techniques.configured import build

SITE = "time_text_embed.time_proj"
STUDY = Path(__file__).parents[2] / "experiments" / "mflux_timestep"


class Rounding(nn.Module):
    """Sinusoids whose frequencies are rounded to the dtype of the timestep, the fault of the study."""

    def __call__(self, timestep):
        angles = 1000 * timestep[:, None].astype(mx.float32) * frequencies().astype(timestep.dtype)
        return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.time_proj = Rounding()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.time_text_embed = Embedding()


@pytest.mark.parametrize("timestep", [1.0, 0.5, 0.375])
def test_the_technique_gives_the_sinusoids_of_unrounded_frequencies(timestep):
    (node,) = OmegaConf.load(STUDY / "conf" / "technique" / "fp32_frequencies.yaml").values()
    technique = build(node, Float32, "technique")
    assert tuple(technique.sites) == (SITE,)
    angles = 1000 * timestep * np.exp(-math.log(10_000) * np.arange(128) / 128)
    exact = np.concatenate([np.cos(angles), np.sin(angles)])
    model, given = Model(), mx.array([timestep], mx.bfloat16)
    before = np.array(model.time_text_embed.time_proj(given))[0]
    with applied({"transformer": model}, {"mended": technique}):
        after = np.array(model.time_text_embed.time_proj(given).astype(mx.float32))[0]
    assert np.abs(before - exact).max() > 0.3
    np.testing.assert_allclose(after, exact, atol=2**-8)  # one rounding to bfloat16


def test_the_drawn_weights_have_the_gain_of_the_benchmark():
    arms = pytest.importorskip("experiments.mflux_timestep.arms")
    config = TransformerConfig(
        num_layers=1, num_attention_heads=2, attention_head_dim=32, joint_attention_dim=64, axes_dims_rope=(8, 12, 12)
    )
    weights = dict(tree_flatten(arms.drawn(config).parameters()))
    hidden = np.array(weights["transformer_blocks.0.img_mlp.net.0.proj.weight"].astype(mx.float32))
    assert hidden.std() * math.sqrt(64) == pytest.approx(0.02 * math.sqrt(3072), rel=0.02)
    assert (np.array(weights["transformer_blocks.0.attn.norm_q.weight"].astype(mx.float32)) == 1).all()


def test_the_figure():
    draw = pytest.importorskip("experiments.mflux_timestep.figure").draw
    arms = {"mflux": 0.1, "mflux, mended": 0.01, "ours": 0.01}
    steps = {"exact": {"0.5": arms}, "rounded": {"0.47": arms}}
    figure = draw({"depth": {"1": arms, "2": arms}, "timesteps": {"drawn": steps, "trained": steps}}).figure
    assert len(figure.axes) == 3
