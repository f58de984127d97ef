"""Rotary positions against QwenEmbedRope of diffusers."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope, apply_rotary_emb_qwen

from precision_lab.model.qwen_image.rope import rotations
from precision_lab.model.rotary import Grid, Rotary
from tests.torch_power import round_powers_correctly

AXES = [(16, 56, 56), (8, 12, 12), (4, 6, 6), (2, 4, 10)]
GRIDS = [(1, 1), (7, 9), (83, 83), (92, 69), (3, 83), (64, 64), (1, 12), (13, 2)]


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_equals_diffusers(axes, monkeypatch):
    round_powers_correctly(monkeypatch)
    oracle = QwenEmbedRope(theta=10000, axes_dim=list(axes), scale_rope=True)
    rng = np.random.default_rng(0)
    for height, width in [*GRIDS, *rng.integers(1, 100, (4, 2)).tolist()]:
        tokens = int(rng.integers(1, 1025))
        expected = oracle([[(1, height, width)]], max_txt_seq_len=tokens)
        for ours, theirs in zip(rotations(axes, Grid(height, width), tokens), expected, strict=True):
            assert ours.shape == tuple(theirs.shape)
            assert ours.dtype == mx.complex64
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("bfloat16", 1e-4), ("float16", 1e-5)])
def test_rotation_equals_diffusers(dtype, bound):
    """In 16 bits, only ties of the final rounding may differ."""
    rng = np.random.default_rng(1)
    for axes, heads in zip(AXES, (2, 3, 1, 5), strict=True):
        x = torch.from_numpy(rng.standard_normal((2, 63, heads, sum(axes)), dtype=np.float32))
        x = x.to(getattr(torch, dtype))
        freqs, _ = QwenEmbedRope(10000, list(axes), scale_rope=True)([[(1, 7, 9)]], max_txt_seq_len=1)
        expected = apply_rotary_emb_qwen(x, freqs, use_real=False)
        result = Rotary()(mx.array(x.float().numpy()).astype(getattr(mx, dtype)), rotations(axes, Grid(7, 9), 1).img)
        assert result.dtype == getattr(mx, dtype)
        difference = np.array(result.astype(mx.float32)) - expected.float().numpy()
        assert np.linalg.norm(difference) <= bound * np.linalg.norm(expected.float().numpy())


def test_rotation_keeps_lengths_and_depends_on_the_distance_only():
    axes = (8, 12, 12)
    rng = np.random.default_rng(2)
    q, k = rng.standard_normal((2, 1, 1, 1, 32), dtype=np.float32)
    text = rotations(axes, Grid(4, 4), 50).txt

    def at(x, position) -> np.ndarray:
        return np.array(Rotary()(mx.array(x), text[position : position + 1])).ravel()

    np.testing.assert_allclose(np.linalg.norm(at(q, 33)), np.linalg.norm(q), rtol=1e-6)
    scores = [at(q, p + 7) @ at(k, p) for p in (0, 11, 40)]
    np.testing.assert_allclose(scores, scores[0], rtol=1e-5)
