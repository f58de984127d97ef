"""Rotary positions against QwenImage21Rope of diffusers."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21Rope

from precision_lab.model.qwen_image_21.rope import rotations
from precision_lab.model.rotary import Grid
from tests.torch_power import round_powers_correctly

AXES = [(16, 56, 56), (8, 12, 12), (4, 6, 6), (2, 4, 10)]
GRIDS = [(1, 1), (7, 9), (83, 83), (92, 69), (3, 83), (64, 64), (1, 12), (13, 2)]


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_equals_diffusers(axes, monkeypatch):
    round_powers_correctly(monkeypatch)
    oracle = QwenImage21Rope(theta=10000, axes_dim=list(axes))
    rng = np.random.default_rng(0)
    for height, width in [*GRIDS, *rng.integers(1, 130, (4, 2)).tolist()]:
        tokens = int(rng.integers(1, 1025))
        is_image = torch.arange(tokens + height * width) >= tokens
        expected = oracle([(1, height, width)], is_image, torch.device("cpu"))
        result = rotations(axes, tokens, Grid(height, width))
        assert result.shape == tuple(expected.shape)
        assert result.dtype == mx.complex64
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


def test_positions_of_the_text_do_not_depend_on_the_target():
    whole = [np.array(rotations((8, 12, 12), 17, grid)) for grid in (Grid(3, 5), Grid(40, 2))]
    np.testing.assert_array_equal(whole[0][:17], whole[1][:17])
    np.testing.assert_array_equal(np.array(rotations((8, 12, 12), 17, None)), whole[0][:17])
