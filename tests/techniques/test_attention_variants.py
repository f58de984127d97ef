"""Attention variants, each compared with attention written out in NumPy float64 or as a scalar loop."""

import math

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.model.attention import Attend
from precision_lab.techniques.base import applied
from precision_lab.techniques.chunked_attention import ChunkedAttention
from precision_lab.techniques.fused_attention import FusedAttention
from precision_lab.techniques.narrow_attention_sums import NarrowAttentionSums, sum_values
from precision_lab.techniques.sage_attention import SageAttention, quantize_blocks
from precision_lab.techniques.smoothed_keys import SmoothedKeys
from precision_lab.techniques.unfused_attention import UnfusedAttention
from tests.techniques.small_model import forward, rel_l2, rewritten, site, small_model

EXACT = [
    FusedAttention(),
    UnfusedAttention(),
    UnfusedAttention(precise=False),
    SmoothedKeys(),
    ChunkedAttention(queries=4, keys=5),
    ChunkedAttention(queries=64, keys=1),
]
ALL = [*EXACT, NarrowAttentionSums(), SageAttention(), SageAttention(accumulator="float32")]


def attend(technique, q, k, v, mask=None, model=None):
    """Calls the technique's replacement of attention on these arrays."""
    address = site(model or small_model(), "transformer_blocks.0.attn.attend")
    return technique.rewrite(address)(q, k, v, mask)


def qkv(seed, tokens=21, dtype=mx.float32, v_scale=1.0):
    rng = np.random.default_rng(seed)
    q, k, v = (mx.array(rng.standard_normal((2, tokens, 2, 32), dtype=np.float32)) for _ in range(3))
    return q.astype(dtype), k.astype(dtype), (v * v_scale).astype(dtype)


def in_float64(q, k, v, mask=None):
    q, k, v = (np.array(a.astype(mx.float32)).astype(np.float64).transpose(0, 2, 1, 3) for a in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = np.where(np.array(mask), scores, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (p / p.sum(axis=-1, keepdims=True) @ v).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("technique", EXACT, ids=repr)
@pytest.mark.parametrize("masked", [False, True])
def test_those_that_claim_it_are_the_same_function(technique, masked):
    assert technique.preserves_function
    model = small_model()
    assert rel_l2(rewritten(model, technique, masked=masked), forward(model, masked=masked)) < 2e-6


@pytest.mark.parametrize("technique", ALL, ids=repr)
def test_a_mask_hides_the_values_of_what_it_masks(technique):
    q, k, v = qkv(1)
    mask = mx.arange(21)[None, None, None, :] < mx.array([21, 13])[:, None, None, None]
    hidden = mx.where(mask.transpose(0, 3, 1, 2), v, 100.0)
    assert rel_l2(attend(technique, q, k, hidden, mask), in_float64(q, k, v, mask)) < 0.02


def test_a_whole_chunk_may_be_masked():
    q, k, v = qkv(2)
    mask = mx.arange(21)[None, None, None, :] >= 8
    out = attend(ChunkedAttention(queries=7, keys=4), q, k, v, mask)
    assert rel_l2(out, in_float64(q, k, v, mask)) < 1e-6


def test_fewer_roundings_are_closer():
    """In bf16, averaged over seeds: a softmax in the storage dtype is worst; one rounding at the end is best."""
    errors = {}
    for name, technique in {
        "plain": None,
        "precise": UnfusedAttention(),
        "storage": UnfusedAttention(precise=False),
    }.items():
        runs = []
        for seed in range(5):
            q, k, v = qkv(seed, tokens=200, dtype=mx.bfloat16)
            out = Attend()(q, k, v) if technique is None else attend(technique, q, k, v)
            runs.append(rel_l2(out.astype(mx.float32), in_float64(q, k, v)))
        errors[name] = np.mean(runs)
    assert errors["plain"] < 0.7 * errors["precise"]
    assert errors["precise"] < errors["storage"]


def test_smoothing_takes_off_what_all_keys_share():
    """A common offset of the keys overwhelms int8; with smoothing the scores are as good as without the offset."""
    q, k, v = qkv(3, tokens=64)
    offset = k + 50 * mx.array(np.random.default_rng(4).standard_normal((1, 1, 2, 32), dtype=np.float32))
    model = small_model()
    sage = SageAttention(accumulator="float32", sites=("transformer_blocks.0.attn.attend",))
    smooth = SmoothedKeys(sites=sage.sites)
    with applied({"transformer": model}, {"sage": sage}):
        core = model.transformer_blocks[0].attn.attend
        rough = rel_l2(core(q, offset, v), in_float64(q, offset, v))
        clean = rel_l2(core(q, k, v), in_float64(q, k, v))
    with applied({"transformer": model}, {"sage": sage, "smooth": smooth}):
        smoothed = rel_l2(model.transformer_blocks[0].attn.attend(q, offset, v), in_float64(q, offset, v))
    assert rough > 10 * clean
    assert smoothed < 1.5 * clean


def test_the_order_of_smoothing_and_quantising_matters_and_the_wrong_one_is_refused():
    with pytest.raises(InputError, match="is _SmoothedKeys, expected Attend"):
        rewritten(small_model(), SmoothedKeys(), SageAttention())


def test_int8_blocks_by_hand():
    x = mx.array([[12.7, -6.35], [1.0, 0.05], [0.0, 0.0], [2.54, -0.03], [0.0, 0.0]])[None, None]
    values, scale = quantize_blocks(x, block=2)
    expected = [[127, -64], [10, 1], [0, 0], [127, -2], [0, 0]]  # ties, -63.5 and 0.5 and -1.5, go away from zero
    assert np.array_equal(np.array(values)[0, 0], expected)
    assert np.allclose(np.array(scale)[0, 0, :, 0], [0.1, 0.1, 0.02, 0.02, 0.0])


@pytest.mark.parametrize("block", [1, 3, 8, 64])
def test_int8_blocks_are_within_half_a_step(block):
    x = qkv(5)[0].transpose(0, 2, 1, 3)
    values, scale = quantize_blocks(x, block)
    assert values.shape == x.shape
    assert np.abs(np.array(values)).max() == 127
    assert np.all(np.abs(np.array(values * scale - x)) <= np.array(scale) * 0.501)


def loop_attention(scores, v, accumulator, block, step):
    """The online softmax for one query, number by number; expressions of NumPy scalars keep their dtype."""
    f32, f16 = np.float32, np.float16
    highest, denominator = f32(-np.inf), f32(0)
    total = np.zeros(v.shape[1], f32)
    for first in range(0, len(scores), block):
        s = scores[first : first + block]
        before, highest = highest, max(highest, s.max())
        p = np.array(mx.exp(mx.array(s - highest)))
        shrink = np.array(mx.exp(mx.array(before - highest)))[()]
        denominator = denominator * shrink + np.array(mx.array(p).sum())[()]
        total = total * shrink
        p, values = p.astype(f16).astype(f32), v[first : first + block].astype(f16).astype(f32)
        for channel in range(v.shape[1]):
            running = f16(total[channel]) if accumulator == "float16" else f16(0)
            for start in range(0, len(s), step):
                part = f32(0)
                for i in range(start, min(start + step, len(s))):
                    part = part + p[i] * values[i, channel]
                running = f16(f32(running) + part)
            total[channel] = f32(running) if accumulator == "float16" else total[channel] + f32(running)
    return total / denominator


@pytest.mark.parametrize("accumulator", ["float16", "float16+float32"])
@pytest.mark.parametrize(("block", "step"), [(8, 1), (8, 4), (5, 1), (64, 16)])
def test_fp16_sums_are_those_of_a_scalar_loop(accumulator, block, step):
    rng = np.random.default_rng(6)
    # whole multiples of 1/8, so that the sums of a step are exact in fp32 in any order
    v = (rng.integers(-40, 40, (21, 3)) / 8).astype(np.float32)
    scores = rng.standard_normal(21).astype(np.float32) if step == 1 else rng.integers(-6, 1, 21).astype(np.float32)
    ours = sum_values(mx.array(scores)[None, None, None], mx.array(v)[None, None], accumulator, block, step)
    expected = loop_attention(scores, v, accumulator, block, step)
    if step == 1:
        assert np.array_equal(np.array(ours)[0, 0, 0], expected)
    else:
        assert np.allclose(np.array(ours)[0, 0, 0], expected, rtol=1e-3, atol=1e-3)


def test_the_narrower_the_sum_the_larger_the_error_and_it_overflows():
    errors = {}
    q, k, v = qkv(7, tokens=1024)
    for accumulator in ("float32", "float16+float32", "float16"):
        out = attend(NarrowAttentionSums(accumulator=accumulator), q, k, v)
        errors[accumulator] = rel_l2(out, in_float64(q, k, v))
    assert errors["float32"] < errors["float16+float32"] < errors["float16"]
    large = qkv(7, tokens=1024)[0], qkv(7, tokens=1024)[1], mx.full((2, 1024, 2, 32), 1000.0)
    assert not mx.isfinite(attend(NarrowAttentionSums(accumulator="float16"), *large)).all()
    assert mx.isfinite(attend(SageAttention(accumulator="float32"), *large)).all()


def test_narrow_sums_without_their_rounding_are_the_same_function():
    model = small_model()
    assert rel_l2(rewritten(model, NarrowAttentionSums().unrounded), forward(model)) < 2e-6
    assert rel_l2(rewritten(model, NarrowAttentionSums()), forward(model)) < 5e-3


@pytest.mark.parametrize("technique", ALL, ids=repr)
def test_the_dtype_of_the_activations_stays(technique):
    q, k, v = qkv(8, dtype=mx.bfloat16)
    out = attend(technique, q, k, v)
    assert out.dtype == mx.bfloat16
    assert out.shape == q.shape


@pytest.mark.parametrize(
    "kind",
    [FusedAttention, UnfusedAttention, SmoothedKeys, ChunkedAttention, NarrowAttentionSums, SageAttention],
)
def test_other_sites_are_refused(kind):
    with pytest.raises(InputError, match=r"norm_out is AdaLayerNormContinuous, expected Attend"):
        rewritten(small_model(), kind(sites=("norm_out",)))


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (ChunkedAttention, {"keys": 0}),
        (NarrowAttentionSums, {"accumulator": "fp16"}),
        (NarrowAttentionSums, {"step": 0}),
        (SageAttention, {"accumulator": "half"}),
        (SageAttention, {"key_block": -64}),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind, setting):
    with pytest.raises(InputError, match=f"{next(iter(setting))} is .*, expected"):
        kind(**setting)
