"""The fused blocks of Qwen-Image-2.1 are the plain function in every pass; on a CPU, MLX replaces the kernels."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Components, select, walk
from precision_lab.instrument.tap import tapped
from precision_lab.model.qwen_image_21.layout import layout
from precision_lab.techniques.base import applied
from precision_lab.techniques.fast import kernels as fused
from precision_lab.techniques.fast import one_stream
from precision_lab.techniques.fast.kernels import Kept, Projected, SharedChunk
from precision_lab.techniques.fast.technique import FusedBlocks
from precision_lab.techniques.float32 import Float32
from precision_lab.techniques.quantized_weights import QuantizedWeights
from precision_lab.techniques.scaled_feed_forward import ScaledFeedForward
from tests.model.oracle import TORCH, relative_l2
from tests.model.qwen_image_21.oracle import (
    Shape,
    copy_of,
    in_dtype,
    ours,
    random_inputs,
    random_shape,
    random_transformer,
    rounded,
)

DTYPES = {mx.float32: 2e-6, mx.float16: 6e-4, mx.bfloat16: 5e-3}
"""A little more than half an ulp on average: one rounding of each element."""

CACHED = pytest.mark.parametrize("cached", [False, True], ids=["one pass", "with a prefix"])


def components(model):
    return Components({"transformer": model}, layout(len(model.transformer_blocks)))


def fast(model, inputs, dtype=mx.float32, cached=False, others=()):
    techniques = {"fast": FusedBlocks(), **{f"t{i}": t for i, t in enumerate(others)}}
    with applied(components(model), techniques):
        return ours(model, inputs, dtype, cached)


@pytest.fixture(scope="module")
def model():
    return copy_of(random_transformer(1, Shape(3)))


@pytest.fixture(scope="module")
def inputs():
    return random_inputs(np.random.default_rng(1), (5, 7), Shape(3), 2, lengths=(11, 6))


@pytest.mark.parametrize("seed", range(6))
def test_the_function_of_random_models_stays_in_every_pass(seed):
    rng = np.random.default_rng(seed)
    shape = random_shape(rng, layers=2)
    model = copy_of(random_transformer(seed, shape, eps=float(rng.choice([1e-6, 1e-5, 1e-3]))))
    batch, tokens = int(rng.integers(1, 4)), int(rng.integers(1, 20))
    grid = tuple(int(n) for n in rng.integers(1, 8, 2))
    lengths = rng.integers(1, tokens + 1, batch) if seed % 2 else None
    inputs = random_inputs(rng, grid, shape, batch, tokens=tokens, lengths=lengths)
    for cached in (False, True):
        assert relative_l2(fast(model, inputs, cached=cached), ours(model, inputs, cached=cached)) < 5e-6


@CACHED
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_in_16_bits_it_is_at_least_as_close_to_fp32_as_the_plain_model(dtype, cached):
    shape = Shape(6)
    oracle = random_transformer(2, shape)
    narrow = copy_of(in_dtype(oracle, TORCH[dtype]))
    wide = copy_of(in_dtype(in_dtype(oracle, TORCH[dtype]), TORCH[mx.float32]))
    errors = {"plain": [], "fast": []}
    for seed in range(3):
        inputs = rounded(random_inputs(np.random.default_rng(seed), (4, 5), shape, 2, lengths=(11, 7)), dtype)
        exact = ours(wide, inputs, cached=cached)
        errors["plain"].append(relative_l2(ours(narrow, inputs, dtype, cached), exact))
        errors["fast"].append(relative_l2(fast(narrow, inputs, dtype, cached), exact))
    assert 0 < np.mean(errors["fast"]) < 1.15 * np.mean(errors["plain"])


@CACHED
def test_compiled_as_on_a_gpu_it_is_the_same(model, inputs, cached, monkeypatch):
    """The blocks are functions of arrays, and their constants are all they depend on besides."""
    calls = []

    def compiled(function, *constants):
        return calls.append(constants) or mx.compile(lambda *arrays: function(*constants, *arrays))

    expected = fast(model, inputs, cached=cached)
    monkeypatch.setattr(one_stream, "compiled", compiled)
    assert relative_l2(fast(model, inputs, cached=cached), expected) < 2e-6
    assert len(set(calls)) == (2 if cached else 1)


def test_the_prefix_is_that_of_the_plain_model(model, inputs):
    text, mask = mx.array(inputs.text), mx.array(inputs.mask)
    plain = model.prefill(text, mask)
    with applied(components(model), {"fast": FusedBlocks()}):
        prefix = model.prefill(text, mask)
    for found, expected in zip(prefix.blocks, plain.blocks, strict=True):
        for array, reference in zip(found, expected, strict=True):
            assert array.shape == reference.shape
            assert relative_l2(np.array(array), np.array(reference)) < 3e-6


@pytest.mark.parametrize("kept", [mx.float16, mx.bfloat16, mx.float32], ids=str)
def test_a_prefix_kept_in_another_dtype_is_used_in_that_of_the_queries(model, inputs, kept):
    latents, timestep, text = (mx.array(a) for a in inputs[:3])
    mask = mx.array(inputs.mask)
    prefix = model.prefill(text, mask).kept_in(kept)
    plain = np.array(model(latents, timestep, text, inputs.grid, mask, prefix))
    with applied(components(model), {"fast": FusedBlocks()}):
        found = model(latents, timestep, text, inputs.grid, mask, prefix)
    assert found.dtype == mx.float32
    assert relative_l2(np.array(found), plain) < 3e-6


def test_the_stream_is_clipped_in_float16_and_nan_stays(inputs):
    model = copy_of(in_dtype(random_transformer(1, Shape(3)), TORCH[mx.float16]))
    model.transformer_blocks[1].img_mlp.out.weight *= 2e4
    assert np.isfinite(fast(model, rounded(inputs, mx.float16), mx.float16)).all()
    model.transformer_blocks[1].img_mlp.out.weight *= float("nan")
    assert np.isnan(fast(model, rounded(inputs, mx.float16), mx.float16)).all()


def test_the_model_is_the_plain_one_again_afterwards(model, inputs):
    before = ours(model, inputs)
    weights = {site.path: np.array(site.module.weight) for site in walk(components(model)) if "weight" in site.module}
    names = [str(site) for site in walk(components(model))]
    with applied(components(model), {"fast": FusedBlocks()}) as coverage:
        assert [str(site) for site in walk(components(model))] == names
        ours(model, inputs)
    assert coverage["fast"].matched == 3 + len(model.transformer_blocks)
    np.testing.assert_array_equal(ours(model, inputs), before)
    for site in walk(components(model)):
        if "weight" in site.module:
            np.testing.assert_array_equal(site.module.weight, weights[site.path])


def test_packing_takes_no_memory():
    model = copy_of(random_transformer(3, Shape(3, heads=4)))
    mx.eval(model.parameters())
    mx.clear_cache()
    before = mx.get_active_memory()
    with applied(components(model), {"fast": FusedBlocks()}):
        grown = mx.get_active_memory() - before
    assert grown < model.transformer_blocks[0].attn.to_q.weight.nbytes  # 15 of at least this size were packed


def test_the_modulation_of_a_timestep_is_computed_once_for_all_blocks_and_steps(model, inputs, monkeypatch):
    calls = []
    prepare = one_stream._prepared
    monkeypatch.setattr(one_stream, "_prepared", lambda modulation: calls.append(modulation) or prepare(modulation))
    changed = inputs._replace(timestep=inputs.timestep / 2)
    with applied(components(model), {"fast": FusedBlocks()}):
        found = [ours(model, case) for case in (inputs, changed, inputs)]
    assert len(calls) == 2
    np.testing.assert_array_equal(found[0], found[2])
    for x, case in zip(found, (inputs, changed), strict=False):
        assert relative_l2(x, ours(model, case)) < 3e-6
    assert relative_l2(found[0], found[1]) > 1e-3


@pytest.mark.parametrize(
    ("pattern", "calls"),
    [("modulation.1", 2), ("split_modulation", 2), ("time_text_embed.timestep_embedder.linear_1", 2)],
)
def test_what_computes_the_modulation_is_seen_at_every_call(model, inputs, pattern, calls):
    seen = []
    with applied(components(model), {"fast": FusedBlocks()}):
        expected = ours(model, inputs)
        with tapped(select(pattern, walk(components(model))), lambda call: seen.append(call.site.path)):
            for _ in range(calls):
                np.testing.assert_array_equal(ours(model, inputs), expected)
    assert seen == [pattern] * calls


def test_block_outputs_can_be_observed_and_stay_the_same(model, inputs):
    seen, expected = [], fast(model, inputs)
    with applied(components(model), {"fast": FusedBlocks()}):
        sites = select(["transformer_blocks.*", "norm_out"], walk(components(model)))
        with tapped(sites, lambda call: seen.append(call.site.path)):
            np.testing.assert_array_equal(ours(model, inputs), expected)
    assert seen == [*(f"transformer_blocks.{i}" for i in range(3)), "norm_out"]


@pytest.mark.parametrize("pattern", ["transformer_blocks.1.img_mlp.multiply", "transformer_blocks.*.attn.attend"])
def test_inside_a_block_observing_is_an_error_and_not_silence(model, inputs, pattern):
    with applied(components(model), {"fast": FusedBlocks()}):
        sites = select(pattern, walk(components(model)))
        with tapped(sites, lambda call: None), pytest.raises(InputError, match=r"observed or rewritten"):
            ours(model, inputs)
        ours(model, inputs)


@pytest.mark.parametrize("first", [True, False])
def test_techniques_inside_a_block_are_refused_and_not_ignored(model, inputs, first):
    techniques = [FusedBlocks(), ScaledFeedForward()]
    with (
        pytest.raises(InputError, match=r"fast: transformer_blocks\.0"),
        applied(components(model), {str(i): t for i, t in enumerate(techniques if first else techniques[::-1])}),
    ):
        ours(model, inputs)


def test_a_rewritten_modulation_is_refused_and_a_quantised_linear_in_it_is_used(model, inputs):
    with (
        pytest.raises(InputError, match="modulation is InFloat32, expected the plain model's"),
        applied(components(model), {"other": Float32(("modulation",)), "fast": FusedBlocks()}),
    ):
        pass
    coarse = QuantizedWeights([{"sites": "modulation.1", "bits": 4, "group_size": 32}])
    with applied(components(model), {"coarse": coarse}):
        expected = ours(model, inputs)
    assert relative_l2(fast(model, inputs, others=[coarse]), expected) < 3e-6
    assert relative_l2(fast(model, inputs), expected) > 1e-3


# --- one operation at a time, against float64 ---


def _exact(x):
    return np.array(x.astype(mx.float32)).astype(np.float64)


def _random(rng, dtype, *shape):
    return mx.array(rng.standard_normal(shape, dtype=np.float32)).astype(dtype)


def _layer_norm(x, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)


def _over_tokens(mods, index, width, num_prefix, length):
    """The vectors of all tokens (B, L, D), by the definition in `kernels`."""
    rows = _exact(mods)[:, index * width : (index + 1) * width]
    batch = len(rows) - (num_prefix is not None)
    return np.stack([[rows[-1] if t < (num_prefix or 0) else rows[b] for t in range(length)] for b in range(batch)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wide_modulation", [False, True])
@pytest.mark.parametrize("width", [256, 4096, 40])
@pytest.mark.parametrize(("num_prefix", "length"), [(None, 7), (0, 5), (3, 9), (6, 6)])
def test_each_operation_rounds_once(dtype, wide_modulation, width, num_prefix, length):
    rng = np.random.default_rng(width + length)
    x, p = (_random(rng, dtype, 2, length, width) for _ in "xp")
    mods = _random(rng, mx.float32 if wide_modulation else dtype, 2 + (num_prefix is not None), 4 * width)
    prefix = None if num_prefix is None else mx.array([num_prefix], mx.int32)
    close = DTYPES[dtype]

    def vector(index):
        return _over_tokens(mods, index, width, num_prefix, length)

    normed = fused.norm_modulate(x, mods, None, SharedChunk.SCALE_1, 1e-6, prefix)
    assert normed.dtype == dtype
    assert relative_l2(_exact(normed), _layer_norm(_exact(x), 1e-6) * (1 + vector(0))) < close

    added = _exact(x) + vector(3) * _exact(p)
    assert relative_l2(_exact(fused.gated_add(x, p, None, mods, SharedChunk.GATE_2, prefix)), added) < close
    clipped = fused.gated_add(x, p, None, mods, SharedChunk.GATE_2, prefix, limit=2)
    assert relative_l2(_exact(clipped), np.clip(added, -2, 2)) < close

    chunks = SharedChunk.GATE_1, None, SharedChunk.SCALE_2
    h, y = fused.gated_add_norm_modulate(x, p, None, mods, *chunks, 1e-6, prefix)
    assert relative_l2(_exact(h), _exact(x) + vector(1) * _exact(p)) < close
    assert relative_l2(_exact(y), _layer_norm(_exact(h), 1e-6) * (1 + vector(2))) < close  # of the rounded sum

    product = _random(rng, dtype, 2, length, 2 * width)
    gate, up = np.split(_exact(product), 2, axis=-1)
    assert relative_l2(_exact(fused.swiglu(product)), gate / (1 + np.exp(-gate)) * up) < close


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
        assert relative_l2(_exact(array[:, begin:]), exact) < DTYPES[dtype]
    if kept is not None:
        for array, old in zip((k, v), kept, strict=True):
            np.testing.assert_array_equal(_exact(array[:, :first]), _exact(old.astype(dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_stays_where_it_is(dtype):
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
