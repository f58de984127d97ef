"""The fused blocks of Qwen-Image-2.1 are the plain function in every pass; on a CPU, MLX replaces the kernels."""

import shutil
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.instrument.sites import select, walk
from precision_lab.instrument.tap import tapped
from precision_lab.model.layers import on_cpu
from precision_lab.techniques.base import applied
from precision_lab.techniques.fast import one_stream
from precision_lab.techniques.fast.technique import FusedBlocks
from precision_lab.techniques.float32 import Float32
from precision_lab.techniques.quantized_weights import QuantizedWeights
from precision_lab.techniques.scaled_feed_forward import ScaledFeedForward
from tests.spread import thinned
from tests.techniques.small_model import rel_l2
from tests.techniques.small_model_21 import (
    CONFIG,
    components,
    forward,
    random_config,
    random_inputs,
    random_model,
    rounded,
)

CACHED = pytest.mark.parametrize("cached", [False, True], ids=["one pass", "with a prefix"])


def fast(model, inputs, dtype=mx.float32, cached=False, others=()):
    techniques = {"fast": FusedBlocks(), **{f"t{i}": t for i, t in enumerate(others)}}
    with applied(components(model), techniques):
        return forward(model, inputs, dtype, cached)


@pytest.fixture(scope="module")
def model():
    return random_model(1)


@pytest.fixture(scope="module")
def inputs():
    return random_inputs(np.random.default_rng(1), lengths=(11, 6))


@pytest.mark.parametrize("seed", range(6))
def test_the_function_of_random_models_stays_in_every_pass(seed):
    rng = np.random.default_rng(seed)
    config = random_config(rng, layers=2)
    model = random_model(seed, config)
    batch, tokens = int(rng.integers(1, 4)), int(rng.integers(1, 20))
    grid = tuple(int(n) for n in rng.integers(1, 8, 2))
    lengths = rng.integers(1, tokens + 1, batch) if seed % 2 else None
    inputs = random_inputs(rng, config, grid, batch, tokens, lengths)
    for cached in (False, True):
        assert rel_l2(fast(model, inputs, cached=cached), forward(model, inputs, cached=cached)) < 5e-6


@CACHED
@pytest.mark.parametrize("dtype", thinned([mx.bfloat16, mx.float16], [mx.bfloat16]), ids=str)
def test_in_16_bits_it_is_at_least_as_close_to_fp32_as_the_plain_model(dtype, cached):
    config = replace(CONFIG, num_layers=6)
    narrow, wide = random_model(2, config), random_model(2, config)
    narrow.set_dtype(dtype)
    wide.update(narrow.parameters())
    wide.set_dtype(mx.float32)
    errors = {"plain": [], "fast": []}
    for seed in range(3):
        inputs = rounded(random_inputs(np.random.default_rng(seed), config, (4, 5), lengths=(11, 7)), dtype)
        exact = forward(wide, inputs, cached=cached)
        errors["plain"].append(rel_l2(forward(narrow, inputs, dtype, cached), exact))
        errors["fast"].append(rel_l2(fast(narrow, inputs, dtype, cached), exact))
    assert 0 < np.mean(errors["fast"]) < 1.15 * np.mean(errors["plain"])


@pytest.mark.skipif(on_cpu() and not shutil.which("g++"), reason="MLX compiles with g++ on CPUs")
@CACHED
def test_compiled_as_on_a_gpu_it_is_the_same(model, inputs, cached, monkeypatch):
    """The blocks are functions of arrays, and their constants are all they depend on besides."""
    calls = []

    def compiled(function, *constants):
        return calls.append(constants) or mx.compile(lambda *arrays: function(*constants, *arrays))

    expected = fast(model, inputs, cached=cached)
    monkeypatch.setattr(one_stream, "compiled", compiled)
    assert rel_l2(fast(model, inputs, cached=cached), expected) < 2e-6
    assert len(set(calls)) == (2 if cached else 1)


def test_the_prefix_is_that_of_the_plain_model(model, inputs):
    plain = model.prefill(inputs.text, inputs.mask)
    with applied(components(model), {"fast": FusedBlocks()}):
        prefix = model.prefill(inputs.text, inputs.mask)
    for found, expected in zip(prefix.blocks, plain.blocks, strict=True):
        for array, reference in zip(found, expected, strict=True):
            assert array.shape == reference.shape
            assert rel_l2(np.array(array), np.array(reference)) < 3e-6


@pytest.mark.parametrize("kept", [mx.float16, mx.bfloat16, mx.float32], ids=str)
def test_a_prefix_kept_in_another_dtype_is_used_in_that_of_the_queries(model, inputs, kept):
    prefix = model.prefill(inputs.text, inputs.mask).kept_in(kept)
    plain = np.array(model(*inputs, prefix))
    with applied(components(model), {"fast": FusedBlocks()}):
        found = model(*inputs, prefix)
    assert found.dtype == mx.float32
    assert rel_l2(np.array(found), plain) < 3e-6


def test_the_stream_is_clipped_in_float16_and_nan_stays(inputs):
    model = random_model(1)
    model.set_dtype(mx.float16)
    model.transformer_blocks[1].img_mlp.out.weight *= 2e4
    assert np.isfinite(fast(model, rounded(inputs, mx.float16), mx.float16)).all()
    model.transformer_blocks[1].img_mlp.out.weight *= float("nan")
    assert np.isnan(fast(model, rounded(inputs, mx.float16), mx.float16)).all()


def test_the_model_is_the_plain_one_again_afterwards(model, inputs):
    before = forward(model, inputs)
    weights = {site.path: np.array(site.module.weight) for site in walk(components(model)) if "weight" in site.module}
    names = [str(site) for site in walk(components(model))]
    with applied(components(model), {"fast": FusedBlocks()}) as coverage:
        assert [str(site) for site in walk(components(model))] == names
        forward(model, inputs)
    assert coverage["fast"].matched == 3 + len(model.transformer_blocks)
    np.testing.assert_array_equal(forward(model, inputs), before)
    for site in walk(components(model)):
        if "weight" in site.module:
            np.testing.assert_array_equal(site.module.weight, weights[site.path])


def test_packing_takes_no_memory():
    model = random_model(3, CONFIG)
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
        found = [forward(model, case) for case in (inputs, changed, inputs)]
    assert len(calls) == 2
    np.testing.assert_array_equal(found[0], found[2])
    for x, case in zip(found, (inputs, changed), strict=False):
        assert rel_l2(x, forward(model, case)) < 3e-6
    assert rel_l2(found[0], found[1]) > 1e-3


@pytest.mark.parametrize(
    ("pattern", "calls"),
    [("modulation.1", 2), ("split_modulation", 2), ("time_text_embed.timestep_embedder.linear_1", 2)],
)
def test_what_computes_the_modulation_is_seen_at_every_call(model, inputs, pattern, calls):
    seen = []
    with applied(components(model), {"fast": FusedBlocks()}):
        expected = forward(model, inputs)
        with tapped(select(pattern, walk(components(model))), lambda call: seen.append(call.site.path)):
            for _ in range(calls):
                np.testing.assert_array_equal(forward(model, inputs), expected)
    assert seen == [pattern] * calls


def test_block_outputs_can_be_observed_and_stay_the_same(model, inputs):
    seen, expected = [], fast(model, inputs)
    with applied(components(model), {"fast": FusedBlocks()}):
        sites = select(["transformer_blocks.*", "norm_out"], walk(components(model)))
        with tapped(sites, lambda call: seen.append(call.site.path)):
            np.testing.assert_array_equal(forward(model, inputs), expected)
    assert seen == [*(f"transformer_blocks.{i}" for i in range(3)), "norm_out"]


@pytest.mark.parametrize("pattern", ["transformer_blocks.1.img_mlp.multiply", "transformer_blocks.*.attn.attend"])
def test_inside_a_block_observing_is_an_error_and_not_silence(model, inputs, pattern):
    with applied(components(model), {"fast": FusedBlocks()}):
        sites = select(pattern, walk(components(model)))
        with tapped(sites, lambda call: None), pytest.raises(InputError, match=r"observed or rewritten"):
            forward(model, inputs)
        forward(model, inputs)


@pytest.mark.parametrize("first", [True, False])
def test_techniques_inside_a_block_are_refused_and_not_ignored(model, inputs, first):
    techniques = [FusedBlocks(), ScaledFeedForward()]
    with (
        pytest.raises(InputError, match=r"fast: transformer_blocks\.0"),
        applied(components(model), {str(i): t for i, t in enumerate(techniques if first else techniques[::-1])}),
    ):
        forward(model, inputs)


def test_a_rewritten_modulation_is_refused_and_a_quantised_linear_in_it_is_used(model, inputs):
    with (
        pytest.raises(InputError, match="modulation is InFloat32, expected the plain model's"),
        applied(components(model), {"other": Float32(("modulation",)), "fast": FusedBlocks()}),
    ):
        pass
    coarse = QuantizedWeights([{"sites": "modulation.1", "bits": 4, "group_size": 32}])
    with applied(components(model), {"coarse": coarse}):
        expected = forward(model, inputs)
    assert rel_l2(fast(model, inputs, others=[coarse]), expected) < 3e-6
    assert rel_l2(fast(model, inputs), expected) > 1e-3
