"""The fused blocks are the same function with fewer roundings; on a CPU, MLX operations replace the kernels."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.instrument.sites import select, walk
from precision_lab.instrument.tap import tapped
from precision_lab.model.layers import on_cpu
from precision_lab.model.rotary import Grid
from precision_lab.techniques.base import applied
from precision_lab.techniques.fast.technique import Fast, FusedBlocks
from precision_lab.techniques.ffn_scaling import FFNScaling
from tests.techniques.configured import SITES
from tests.techniques.small_model import forward, rel_l2, rewritten, small_model


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


def _linears(model):
    return [(site.path, site.module) for site in walk({"transformer": model}) if "weight" in site.module]
