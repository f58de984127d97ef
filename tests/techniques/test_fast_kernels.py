"""The fused operations against float64: kernels on a machine with CUDA, elsewhere operations of MLX."""

import re

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.model.qwen_image.rope import rotations
from precision_lab.model.rotary import Grid
from precision_lab.numerics.packing import Quantization
from precision_lab.techniques.fast import cuda
from precision_lab.techniques.fast import kernels as fused
from precision_lab.techniques.fast.decoding import decoded
from precision_lab.techniques.fast.kernels import Chunk, Kept, Projected, SharedChunk
from tests.techniques.small_model import rel_l2

DTYPES = {mx.float32: 2e-6, mx.float16: 6e-4, mx.bfloat16: 5e-3}
"""A little more than half an ulp on average: one rounding of each element."""


def _exact(x):
    return np.array(x.astype(mx.float32)).astype(np.float64)


def _random(rng, dtype, *shape):
    return mx.array(rng.standard_normal(shape, dtype=np.float32)).astype(dtype)


def _layer_norm(x, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)


def _chunk(mods, index):
    return np.split(_exact(mods), 6, axis=-1)[index][:, None]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [256, 3072, 40])
def test_each_operation_rounds_once(dtype, width):
    rng = np.random.default_rng(width)
    x, p = _random(rng, dtype, 2, 7, width), _random(rng, dtype, 2, 7, width)
    bias, mods = _random(rng, dtype, width), _random(rng, dtype, 2, 6 * width)
    close = DTYPES[dtype]

    normed = fused.norm_modulate(x, mods, Chunk.SHIFT_1, Chunk.SCALE_1, 1e-6)
    assert normed.dtype == dtype
    expected = _layer_norm(_exact(x), 1e-6) * (1 + _chunk(mods, 1)) + _chunk(mods, 0)
    assert rel_l2(_exact(normed), expected) < close

    added = _exact(x) + _chunk(mods, 2) * (_exact(p) + _exact(bias))
    assert rel_l2(_exact(fused.gated_add(x, p, bias, mods, Chunk.GATE_1)), added) < close

    h, y = fused.gated_add_norm_modulate(x, p, bias, mods, Chunk.GATE_1, Chunk.SHIFT_2, Chunk.SCALE_2, 1e-6)
    assert rel_l2(_exact(h), added) < close
    expected = _layer_norm(_exact(h), 1e-6) * (1 + _chunk(mods, 4)) + _chunk(mods, 3)
    assert rel_l2(_exact(y), expected) < close  # relative to the rounded sum

    z = _exact(p) + _exact(bias)
    expected = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    assert rel_l2(_exact(fused.gelu(p, bias)), expected) < close


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "head_dim"), [(2, 128), (24, 128), (2, 32), (3, 40)])
def test_the_joint_sequence_is_text_then_image(dtype, heads, head_dim):
    rng = np.random.default_rng(heads)
    width, grid, num_text = heads * head_dim, Grid(3, 4), 5
    axes = (head_dim // 2, head_dim // 4, head_dim // 4)
    turns = rotations(axes, grid, num_text)

    def stream(length, rotation):
        shapes = (2, length, 3 * width), (3 * width,), (head_dim,), (head_dim,)
        return Projected(*(_random(rng, dtype, *shape) for shape in shapes), rotation)

    txt, img = stream(num_text, turns.txt), stream(12, turns.img)
    expected = [[], [], []]
    for s in (txt, img):
        parts = np.split(_exact(s.qkv) + _exact(s.bias), 3, axis=-1)
        q, k, v = (part.reshape(2, -1, heads, head_dim) for part in parts)
        for x, norm, to in ((q, s.q_norm, expected[0]), (k, s.k_norm, expected[1])):
            y = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * _exact(norm)
            turned = y.view(np.complex128) * np.array(s.rotation).astype(np.complex128)[:, None]
            to.append(turned.view(np.float64))
        expected[2].append(v)
    for x, parts in zip(fused.joint_qkv(txt, img, head_dim, 1e-6), expected, strict=True):
        assert x.shape == (2, num_text + 12, heads, head_dim)
        assert rel_l2(_exact(x), np.concatenate(parts, axis=1)) < DTYPES[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_stays_where_it_is(dtype):
    x = np.full((1, 3, 256), 0.5, np.float32)
    x[0, 0, 3], x[0, 1, 5], x[0, 2, 7] = np.nan, np.inf, 1e4
    product, bias, mods = mx.array(x).astype(dtype), mx.zeros((256,), dtype), mx.ones((1, 1536), dtype)
    activated = _exact(fused.gelu(product, bias))
    assert np.argwhere(~np.isfinite(activated)).tolist() == [[0, 0, 3], [0, 1, 5]]
    assert activated[0, 1, 5] == np.inf
    assert activated[0, 2, 7] == pytest.approx(1e4, rel=0.01)
    added = _exact(fused.gated_add(mx.ones_like(product), product, bias, mods, Chunk.GATE_2))
    assert np.argwhere(~np.isfinite(added)).tolist() == [[0, 0, 3], [0, 1, 5]]
    normed = _exact(fused.norm_modulate(product, mods, Chunk.SHIFT_1, Chunk.SCALE_1, 1e-6))
    assert np.isnan(normed[0, :2]).all()
    assert np.isfinite(normed[0, 2]).all()


def _over_tokens(mods, index, width, num_prefix, length):
    """The vectors of all tokens (B, L, D), by the definition in `kernels`."""
    rows = _exact(mods)[:, index * width : (index + 1) * width]
    batch = len(rows) - (num_prefix is not None)
    return np.stack([[rows[-1] if t < (num_prefix or 0) else rows[b] for t in range(length)] for b in range(batch)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wide_modulation", [False, True])
@pytest.mark.parametrize("width", [256, 4096, 40])
@pytest.mark.parametrize(("num_prefix", "length"), [(None, 7), (0, 5), (3, 9), (6, 6)])
def test_each_operation_of_one_stream_rounds_once(dtype, wide_modulation, width, num_prefix, length):
    rng = np.random.default_rng(width + length)
    x, p = (_random(rng, dtype, 2, length, width) for _ in "xp")
    mods = _random(rng, mx.float32 if wide_modulation else dtype, 2 + (num_prefix is not None), 4 * width)
    prefix = None if num_prefix is None else mx.array([num_prefix], mx.int32)
    close = DTYPES[dtype]

    def vector(index):
        return _over_tokens(mods, index, width, num_prefix, length)

    normed = fused.norm_modulate(x, mods, None, SharedChunk.SCALE_1, 1e-6, prefix)
    assert normed.dtype == dtype
    assert rel_l2(_exact(normed), _layer_norm(_exact(x), 1e-6) * (1 + vector(0))) < close

    added = _exact(x) + vector(3) * _exact(p)
    assert rel_l2(_exact(fused.gated_add(x, p, None, mods, SharedChunk.GATE_2, prefix)), added) < close
    clipped = fused.gated_add(x, p, None, mods, SharedChunk.GATE_2, prefix, limit=2)
    assert rel_l2(_exact(clipped), np.clip(added, -2, 2)) < close

    chunks = SharedChunk.GATE_1, None, SharedChunk.SCALE_2
    h, y = fused.gated_add_norm_modulate(x, p, None, mods, *chunks, 1e-6, prefix)
    assert rel_l2(_exact(h), _exact(x) + vector(1) * _exact(p)) < close
    assert rel_l2(_exact(y), _layer_norm(_exact(h), 1e-6) * (1 + vector(2))) < close  # of the rounded sum

    product = _random(rng, dtype, 2, length, 2 * width)
    gate, up = np.split(_exact(product), 2, axis=-1)
    assert rel_l2(_exact(fused.swiglu(product)), gate / (1 + np.exp(-gate)) * up) < close


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "head_dim"), [(2, 128), (32, 128), (4, 64), (3, 40)])
@pytest.mark.parametrize("num_kept", [None, 1, 5])
@pytest.mark.parametrize("biased", [False, True])
def test_kept_keys_and_values_are_in_front_of_those_of_the_tokens(dtype, heads, head_dim, num_kept, biased):
    rng = np.random.default_rng(heads)
    width, length = heads * head_dim, 7
    rotation = np.exp(1j * rng.uniform(0, 6, (length, head_dim // 2))).astype(np.complex64)
    shapes = (2, length, 3 * width), (3 * width,), (head_dim,), (head_dim,)
    product, bias, *norms = (_random(rng, dtype, *shape) for shape in shapes)
    x = Projected(product, bias if biased else None, *norms, mx.array(rotation))
    kept = None if num_kept is None else Kept(*(_random(rng, mx.float16, 2, num_kept, heads, head_dim) for _ in "kv"))
    q, k, v = fused.qkv(x, head_dim, 1e-6, kept)

    summed = _exact(product) + (_exact(bias) if biased else 0)
    parts = [part.reshape(2, length, heads, head_dim) for part in np.split(summed, 3, axis=-1)]
    expected = []
    for part, norm in zip(parts, norms, strict=False):
        y = part / np.sqrt((part**2).mean(-1, keepdims=True) + 1e-6) * _exact(norm)
        expected.append((y.view(np.complex128) * rotation[:, None].astype(np.complex128)).view(np.float64))
    expected.append(parts[2])
    first = num_kept or 0
    for array, exact, begin in zip((q, k, v), expected, (0, first, first), strict=True):
        assert array.dtype == dtype
        assert array.shape == (2, begin + length, heads, head_dim)
        assert rel_l2(_exact(array[:, begin:]), exact) < DTYPES[dtype]
    if kept is not None:
        for array, old in zip((k, v), kept, strict=True):
            np.testing.assert_array_equal(_exact(array[:, :first]), _exact(old.astype(dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_stays_where_it_is_in_one_stream(dtype):
    gate = np.full((1, 4, 256), 0.5, np.float32)
    gate[0, 0, 3], gate[0, 1, 5], gate[0, 2, 7], gate[0, 3, 9] = np.nan, np.inf, -1e4, 1e4
    product = mx.concatenate([mx.array(gate), mx.ones((1, 4, 256))], axis=-1).astype(dtype)
    activated = _exact(fused.swiglu(product))
    assert np.argwhere(~np.isfinite(activated)).tolist() == [[0, 0, 3], [0, 1, 5]]
    assert activated[0, 1, 5] == np.inf
    assert activated[0, 2, 7] == 0
    assert activated[0, 3, 9] == pytest.approx(1e4, rel=0.01)
    mods, x = mx.ones((1, 1024)), mx.array(gate).astype(dtype)
    clipped = _exact(fused.gated_add(x, mx.ones_like(x), None, mods, SharedChunk.GATE_2, limit=60000))
    assert np.argwhere(np.isnan(clipped)).tolist() == [[0, 0, 3]]
    assert clipped[0, 1, 5] == pytest.approx(60000, rel=0.01)


@pytest.mark.parametrize("prefix", [None, mx.array([2], mx.int32)], ids=["all alike", "with a prefix"])
def test_a_launch_fits_its_source(monkeypatch, prefix):
    """What MLX would refuse on a GPU, seen on any machine."""
    launched = set()

    def kernel(name, inputs, outputs):
        def launch(*, inputs, template, grid, threadgroup, output_shapes, output_dtypes, names=inputs):
            launched.add(name)
            assert len(inputs) == len(names)
            assert len(outputs) == len(output_shapes) == len(output_dtypes)
            source = cuda.source(name)
            assert all(re.search(rf"\b{constant}\b", source) for constant, _ in template)
            assert all(re.search(rf"\b{array}\b", source) for array in (*names, *outputs))
            # MLX puts the values into the name of the function
            values = [int(value) for _, value in template if not isinstance(value, mx.Dtype)]
            assert min(values) >= 0
            assert all(g % t == 0 for g, t in zip(grid[1:], threadgroup[1:], strict=True))
            assert threadgroup[0] <= cuda.LARGEST_BLOCK
            return [mx.zeros(*each) for each in zip(output_shapes, output_dtypes, strict=True)]

        return launch

    monkeypatch.setattr(cuda, "kernel", kernel)
    monkeypatch.setattr(cuda, "takes", lambda *arrays, parts=1: True)
    x, mods, bias, norm = mx.zeros((2, 5, 256)), mx.zeros((3, 1536)), mx.zeros((256,)), mx.zeros((128,))
    rotation = mx.zeros((5, 64), mx.complex64)
    for shift, of_linear in ((None, None), (3, bias)):
        fused.norm_modulate(x, mods, shift, 0, 1e-6, prefix)
        fused.gated_add(x, x, of_linear, mods, 1, prefix, limit=65504)
        fused.gated_add_norm_modulate(x, x, of_linear, mods, 1, shift, 2, 1e-6, prefix)
    fused.gelu(x, bias)
    assert fused.swiglu(x).shape == (2, 5, 128)
    product = mx.zeros((2, 5, 768))
    for of_linear in (None, mx.zeros((768,))):
        projected = Projected(product, of_linear, norm, norm, rotation)
        for kept in (None, Kept(*[mx.zeros((2, 3, 2, 128))] * 2)):
            q, k, v = fused.qkv(projected, 128, 1e-6, kept)
            assert q.shape == (2, 5, 2, 128)
            assert k.shape == v.shape == (2, 8 if kept else 5, 2, 128)
        fused.joint_qkv(projected, projected, 128, 1e-6)
    assert len(launched) == 7


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("stored", [mx.bfloat16, mx.float32], ids=str)
def test_affine_codes_are_decoded_with_their_scales(dtype, bits, group, stored):
    rng = np.random.default_rng(bits)
    weight, scales, biases = mx.quantize(_random(rng, stored, 7, 384), group, bits)
    codes = np.unpackbits(np.array(weight).view(np.uint8), axis=1, bitorder="little").reshape(7, 384, bits)
    codes = (codes << np.arange(bits)).sum(-1)
    expected = codes * _exact(scales).repeat(group, axis=1) + _exact(biases).repeat(group, axis=1)
    result = decoded(Quantization(group, bits, "affine"), (weight, scales, biases), dtype)
    assert result.dtype == dtype
    # MLX rounds the product too
    roundings = 1 if cuda.runs() else 2
    assert rel_l2(_exact(result), expected) < roundings * DTYPES[dtype]
