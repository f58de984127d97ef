"""Stochastic and compensated residual adds."""

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.instrument.scope import scope
from precision_lab.model.modulation import GatedAdd
from precision_lab.techniques.base import applied
from precision_lab.techniques.compensated_residual import CompensatedResidual
from precision_lab.techniques.stochastic_residual import StochasticResidual, stochastic_bfloat16
from tests.techniques.small_model import components, forward, rel_l2, rewritten, site, small_model

ADD = "transformer_blocks.0.img_add1"
ONE = mx.ones((1, 64), dtype=mx.bfloat16)


def neighbours(x):
    """The bfloat16 values towards zero and away from it, as fp32."""
    towards = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    away = (towards.view(np.uint32) + 0x10000).view(np.float32)
    return towards, away


def test_stochastic_rounding_goes_to_a_neighbour_with_the_odds_of_nearness():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(200) * 10.0 ** rng.integers(-6, 7, 200)).astype(np.float32)
    draws = 4000
    rounded = stochastic_bfloat16(mx.array(np.tile(x, (draws, 1))), mx.random.key(2))
    rounded = np.array(rounded.astype(mx.float32))
    towards, away = neighbours(x)
    assert np.all((rounded == towards) | (rounded == away))
    odds = ((x - towards) / (away - towards)).astype(np.float64)
    seen = (rounded == away).mean(axis=0)
    deviation = np.sqrt(np.maximum(odds * (1 - odds), 1 / draws) / draws)
    z = (seen - odds) / deviation
    assert np.abs(z).max() < 5
    assert abs(z.mean()) < 4 / np.sqrt(len(z)), "unbiased over all values together"


def test_exact_and_special_values_stay():
    exact = mx.array([0.0, -0.0, 1.5, -3.0e38, 2.0**-133, np.inf, -np.inf, np.nan])
    for seed in range(20):
        out = np.array(stochastic_bfloat16(exact, mx.random.key(seed)).astype(mx.float32))
        assert np.array_equal(out[:3], exact[:3])
        assert np.array_equal(out[4:], np.array(exact)[4:], equal_nan=True)


def long_sum(add, updates, dtype=mx.bfloat16):
    """The stream after many small updates: (1, 1, 64)."""
    stream = mx.full((1, 1, 64), 256.0, dtype=dtype)
    for index, update in enumerate(updates):
        with scope(step=index):
            stream = add(stream, ONE.astype(dtype), update)
    return np.array(stream.astype(mx.float32))


def small_updates(count=200, seed=3):
    values = np.random.default_rng(seed).uniform(0.1, 0.5, (count, 1, 1, 64)).astype(ml_dtypes.bfloat16)
    exact = 256 + values.astype(np.float64).sum(axis=0)
    return [mx.array(v.astype(np.float32)).astype(mx.bfloat16) for v in values], exact


def rewrite(technique, path=ADD):
    return technique.rewrite(site(small_model(), path))


def test_updates_below_half_an_ulp_are_lost_kept_on_average_or_kept():
    """256 in bf16 has an ulp of 2, so plain adds lose updates of up to 0.5."""
    updates, exact = small_updates()
    assert np.all(long_sum(GatedAdd(), updates) == 256)
    stochastic = long_sum(rewrite(StochasticResidual()), updates)
    assert abs(stochastic.mean() - exact.mean()) < 3
    assert np.abs(stochastic - exact).max() > 4, "right on average, not one by one"
    for correction, ulps in (("float32", 0.5), ("bfloat16", 0.6)):
        compensated = long_sum(rewrite(CompensatedResidual(correction=correction)), updates)
        assert np.abs(compensated - exact).max() <= 2 * ulps


def test_compensation_survives_updates_larger_than_the_stream():
    """Kahan's form in one precision loses this: 1 + 1000 - 1000 is 1."""
    add = rewrite(CompensatedResidual())
    stream = mx.full((1, 1, 64), 1.0, dtype=mx.bfloat16)
    for value in (1000.0, -1000.0):
        stream = add(stream, ONE, mx.full((1, 1, 64), value, dtype=mx.bfloat16))
    assert mx.all(stream == 1)


def test_a_correction_goes_with_its_array_only():
    """Another stream at the same site, as in a second forward, starts without the correction of the first."""
    add = rewrite(CompensatedResidual())
    first = mx.full((1, 1, 64), 256.0, dtype=mx.bfloat16)
    update = mx.full((1, 1, 64), 0.75, dtype=mx.bfloat16)
    once = add(first, ONE, update)
    assert mx.all(once == 256)
    again = add(first, ONE, update)  # the plain sum again, not 257.5
    assert mx.all(again == 256)
    assert mx.all(add(again, ONE, update) == 258), "1.5 together"
    assert mx.all(add(mx.array(again), ONE, update) == 256), "a copy is another array"


def test_both_streams_and_both_adds_share_one_correction_each():
    model = small_model()
    model.set_dtype(mx.bfloat16)
    technique = CompensatedResidual()
    with applied(components(model), {"t": technique}) as coverage:
        block = model.transformer_blocks[0]
        img, txt = (mx.full((1, 1, 64), 256.0, dtype=mx.bfloat16) for _ in range(2))
        update = mx.full((1, 1, 64), 0.75, dtype=mx.bfloat16)
        img = block.img_add1(img, ONE, update)
        txt = block.txt_add1(txt, ONE, -update)
        assert mx.all(block.img_add2(img, ONE, update) == 258)
        assert mx.all(block.txt_add2(txt, ONE, -update) == 254)
    assert coverage["t"].matched == 4 * 3


@pytest.mark.parametrize("technique", [StochasticResidual(), CompensatedResidual()], ids=lambda t: type(t).__name__)
def test_in_fp32_it_is_the_same_function(technique):
    model = small_model()
    assert technique.preserves_function
    assert rel_l2(rewritten(model, technique), forward(model)) < 1e-6


@pytest.mark.parametrize(
    "technique", [StochasticResidual(), CompensatedResidual(), CompensatedResidual(correction="bfloat16")], ids=repr
)
def test_the_same_run_gives_the_same_bits(technique):
    model = small_model()
    model.set_dtype(mx.bfloat16)
    first = rewritten(model, technique, dtype=mx.bfloat16)
    assert np.array_equal(rewritten(model, technique, dtype=mx.bfloat16), first)
    assert not np.array_equal(first, forward(model, mx.bfloat16))


def test_stochastic_bits_differ_by_seed_site_step_and_branch():
    x = mx.full((1, 4, 64), 256.0, dtype=mx.bfloat16)
    update = mx.full((1, 4, 64), 0.75, dtype=mx.bfloat16)

    def once(seed=0, path=ADD, **labels):
        with scope(**{"step": 0, "branch": "cond", **labels}):
            return np.array(rewrite(StochasticResidual(seed=seed), path)(x, ONE, update).astype(mx.float32))

    variants = [once(), once(seed=1), once(path="transformer_blocks.0.img_add2"), once(step=1), once(branch="uncond")]
    assert np.array_equal(once(), variants[0])
    for i, a in enumerate(variants):
        for b in variants[:i]:
            assert not np.array_equal(a, b)


def test_overflow_stays_infinite():
    huge = mx.full((1, 1, 64), 60000.0, dtype=mx.float16)
    add = rewrite(CompensatedResidual())
    stream = add(huge, ONE.astype(mx.float16), huge)
    assert mx.all(mx.isinf(stream))
    assert mx.all(mx.isinf(add(stream, ONE.astype(mx.float16), -huge))), "as in the plain model"


def test_refusals():
    for kind in (StochasticResidual, CompensatedResidual):
        with pytest.raises(InputError, match="norm_out is AdaLayerNormContinuous, expected GatedAdd"):
            rewritten(small_model(), kind(sites=("norm_out",)))
    with pytest.raises(InputError, match="correction is 'fp32', expected one of"):
        CompensatedResidual(correction="fp32")
    model = small_model()
    model.set_dtype(mx.float16)
    with pytest.raises(InputError, match="img_add1 is float16, expected bfloat16"):
        rewritten(model, StochasticResidual(), dtype=mx.float16)
