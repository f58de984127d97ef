"""The fused blocks are the same function with fewer roundings; on a CPU, MLX operations replace the kernels."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.instrument.sites import select, walk
from precision_lab.instrument.tap import tapped
from precision_lab.model.layers import on_cpu
from precision_lab.model.qwen_image.rope import rotations
from precision_lab.model.rotary import Grid
from precision_lab.techniques.base import applied
from precision_lab.techniques.fast import kernels as fused
from precision_lab.techniques.fast.kernels import Chunk, Projected
from precision_lab.techniques.fast.technique import Fast, FusedBlocks
from precision_lab.techniques.ffn_scaling import FFNScaling
from tests.techniques.configured import SITES
from tests.techniques.small_model import forward, rel_l2, rewritten, small_model

DTYPES = {mx.float32: 2e-6, mx.float16: 6e-4, mx.bfloat16: 5e-3}
"""A little more than half an ulp on average: one rounding of each element."""


@pytest.mark.parametrize("masked", [False, True])
def test_the_function_stays(masked):
    model = small_model()
    assert rel_l2(rewritten(model, FusedBlocks(), masked=masked), forward(model, masked=masked)) < 3e-6


def test_in_bf16_it_is_at_least_as_close_to_fp32_as_the_plain_model():
    model = small_model()
    exact = forward(model)
    model.set_dtype(mx.bfloat16)
    rounded_weights = forward(model)
    plain = rel_l2(forward(model, mx.bfloat16), rounded_weights)
    fast = rel_l2(rewritten(model, FusedBlocks(), dtype=mx.bfloat16), rounded_weights)
    assert 0 < fast < 1.15 * plain
    assert rel_l2(rounded_weights, exact) < 0.02


def test_the_model_is_the_plain_one_again_afterwards():
    model = small_model()
    before, names = forward(model), [str(site) for site in walk({"transformer": model})]
    weights = {name: np.array(module.weight) for name, module in _linears(model)}
    with applied({"transformer": model}, {"fast": FusedBlocks()}):
        assert [str(site) for site in walk({"transformer": model})] == names
        forward(model)
    assert np.array_equal(forward(model), before)
    assert all(np.array_equal(module.weight, weights[name]) for name, module in _linears(model))


def test_packing_takes_no_memory():
    """q, k and v become views of the packed matrix: a model of 20 B weights leaves no room for a copy."""
    model = small_model()
    mx.eval(model.parameters())
    mx.clear_cache()
    before = mx.get_active_memory()
    with applied({"transformer": model}, {"fast": FusedBlocks()}):
        grown = mx.get_active_memory() - before
    matrix = model.transformer_blocks[0].attn.to_q.weight.nbytes
    assert grown < matrix  # 18 were packed


def test_a_timestep_is_modulated_once_however_often_it_comes():
    model = small_model()
    calls = []
    with applied({"transformer": model}, {"fast": FusedBlocks()}):
        block = model.transformer_blocks[0].inner
        modulate = block.img_mod
        block["img_mod"] = lambda temb: calls.append(temb.shape) or modulate(temb)
        model.transformer_blocks[0]._parts = []  # would notice it
        first, again = forward(model), forward(model)
        block["img_mod"] = modulate
    assert np.array_equal(first, again)
    assert calls == [(2, 64)]


def test_other_timesteps_have_their_own_modulations():
    model = small_model()

    def at(t):
        latents, text = mx.ones((1, 15, 64)), mx.ones((1, 6, 40))
        return np.array(model(latents, mx.array([t]), text, Grid(3, 5)))

    plain = [at(t) for t in (0.1, 0.9, 0.1)]
    with applied({"transformer": model}, {"fast": FusedBlocks()}):
        fast = [at(t) for t in (0.1, 0.9, 0.1)]
    assert rel_l2(plain[0], plain[1]) > 1e-3
    for x, reference in zip(fast, plain, strict=True):
        assert rel_l2(x, reference) < 3e-6


def test_block_outputs_can_be_observed_and_stay_the_same():
    model, seen = small_model(), []
    fast = rewritten(model, FusedBlocks())
    with applied({"transformer": model}, {"fast": FusedBlocks()}):
        sites = select(["transformer_blocks.*", "norm_out"], walk({"transformer": model}))
        with tapped(sites, lambda call: seen.append(call.site.path)):
            assert np.array_equal(forward(model), fast)
    assert seen == ["transformer_blocks.0", "transformer_blocks.1", "transformer_blocks.2", "norm_out"]


@pytest.mark.parametrize("pattern", ["transformer_blocks.1.img_mlp", "transformer_blocks.*.attn.norm_q"])
def test_inside_a_block_observing_is_an_error_and_not_silence(pattern):
    model = small_model()
    with applied({"transformer": model}, {"fast": FusedBlocks()}):
        sites = select(pattern, walk({"transformer": model}))
        with (
            tapped(sites, lambda call: None),
            pytest.raises(InputError, match=r"observed or rewritten.*modules outside"),
        ):
            forward(model)
        forward(model)


def test_the_inside_of_the_time_embedding_is_seen_at_every_call():
    model, seen = small_model(), []
    with applied({"transformer": model}, {"fast": FusedBlocks()}):
        sites = select("time_text_embed.timestep_embedder.linear_1", walk({"transformer": model}))
        with tapped(sites, lambda call: seen.append(call.site.path)):
            forward(model), forward(model)
    assert len(seen) == 2


@pytest.mark.parametrize(
    "order",
    [(FFNScaling([SITES["feed_forwards"]]), FusedBlocks()), (FusedBlocks(), FFNScaling([SITES["feed_forwards"]]))],
    ids=["after", "before"],
)
def test_techniques_inside_a_block_are_refused_and_not_ignored(order):
    model = small_model()
    with pytest.raises(InputError, match=r"fast: transformer_blocks\.0"):
        rewritten(model, *order)


def test_fast_chooses_by_device():
    assert ("transformer_blocks.*" in Fast().sites) is not on_cpu()


# --- one operation at a time, against float64 ---


def _linears(model):
    return [(site.path, site.module) for site in walk({"transformer": model}) if "weight" in site.module]


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
