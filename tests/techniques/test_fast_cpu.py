"""The fast replacements on a CPU: the plain module's function, no less exact, the same bits every time."""

import math

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
from scipy.special import expit, softmax

from precision_lab.instrument.arrays import to_numpy
from precision_lab.instrument.sites import walk
from precision_lab.instrument.tap import tapped
from precision_lab.model.attention import Attend
from precision_lab.model.layers import GELUTanh, LayerNorm, Linear, RMSNorm, SiLU, Tanh
from precision_lab.model.qwen_image.rope import rotations
from precision_lab.model.rotary import Grid, Rotary
from precision_lab.techniques.base import applied
from precision_lab.techniques.fast.cpu import FastCPU, replacement
from precision_lab.techniques.ffn_scaling import FFNScaling
from tests.techniques.configured import SITES
from tests.techniques.small_model import CONFIG, forward, rel_l2, rewritten, small_model

pytestmark = pytest.mark.skipif(mx.default_device().type != mx.DeviceType.cpu, reason="for CPUs")

DTYPES = pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
# MLX computes norms and rotations of few tokens, attention and activations of still fewer, NumPy those of 300
TOKENS = pytest.mark.parametrize("tokens", [1, 7, 65, 300])
HEADS, CHANNELS = 3, 32


def float64(x):
    return to_numpy(x).astype(np.float64)


class Linears:
    """Wide enough for several pieces of outputs, the last one short."""

    def __init__(self, dtype, inputs=520, outputs=580):
        rng = np.random.default_rng(5)
        self.plain = Linear(inputs, outputs)
        self.plain.weight = mx.array(rng.standard_normal((outputs, inputs), dtype=np.float32)).astype(dtype)
        self.plain.bias = mx.array(rng.standard_normal(outputs, dtype=np.float32)).astype(dtype)
        self.shape = (2, -1, inputs)

    def exact(self, x):
        return x @ float64(self.plain.weight).T + float64(self.plain.bias)


class GELUs:
    def __init__(self, dtype):
        self.plain, self.shape = GELUTanh(), (2, -1, 700)

    def exact(self, x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class SiLUs:
    def __init__(self, dtype):
        self.plain, self.shape = SiLU(), (2, -1, 700)

    def exact(self, x):
        return x * expit(x)


class LayerNorms:
    def __init__(self, dtype):
        self.plain, self.shape = LayerNorm(), (2, -1, 700)

    def exact(self, x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


class Attends:
    def __init__(self, dtype):
        self.plain, self.shape = Attend(), (2, -1, HEADS, CHANNELS)

    def arguments(self, x):
        return x, x[:, ::-1], x * 0.5

    def exact(self, x):
        q, k, v = (a.transpose(0, 2, 1, 3) for a in (x, x[:, ::-1], x * 0.5))
        return (softmax(q @ k.swapaxes(2, 3) / math.sqrt(CHANNELS), axis=-1) @ v).transpose(0, 2, 1, 3)


class Rotaries:
    def __init__(self, dtype):
        self.plain, self.shape = Rotary(), (2, -1, HEADS, CHANNELS)

    def arguments(self, x):
        return x, rotations((8, 12, 12), Grid(1, x.shape[1]), 1).img

    def exact(self, x):
        turns = np.asarray(self.arguments(x)[1]).astype(np.complex128)[:, None]
        return (np.ascontiguousarray(x).view(np.complex128) * turns).view(np.float64)


KINDS = pytest.mark.parametrize("kind", [Linears, GELUs, SiLUs, LayerNorms, Attends, Rotaries])


def case(kind, dtype, tokens, seed=0, massive=False):
    """The case, the replacement, and arguments for both."""
    one = kind(dtype)
    x = np.random.default_rng(seed).standard_normal([tokens if d == -1 else d for d in one.shape], dtype=np.float32)
    if massive:
        x[..., 3] += 300
    return one, replacement(one.plain), mx.array(x).astype(dtype)


def arguments(one, x):
    return one.arguments(x) if hasattr(one, "arguments") else (x,)


@KINDS
@DTYPES
@TOKENS
@pytest.mark.parametrize("massive", [False, True])
def test_no_further_from_float64_than_the_plain_module(kind, dtype, tokens, massive):
    one, fast, x = case(kind, dtype, tokens, seed=tokens, massive=massive)
    plain, quick = one.plain(*arguments(one, x)), fast(*arguments(one, x))
    assert quick.dtype == plain.dtype == dtype
    assert quick.shape == plain.shape
    exact = one.exact(float64(x))
    # equal where both round once to 16 bits; in fp32 another order of summation may be a little better or worse
    allowed = 1.02 * rel_l2(float64(plain), exact) + (1e-7 if dtype == mx.float32 else 0)
    assert rel_l2(float64(quick), exact) <= allowed


@KINDS
@DTYPES
def test_the_same_bits_every_time(kind, dtype):
    one, fast, x = case(kind, dtype, 300)
    first = to_numpy(fast(*arguments(one, x)))
    for _ in range(5):
        assert np.array_equal(to_numpy(fast(*arguments(one, x))).view(np.uint8), first.view(np.uint8))


@KINDS
@DTYPES
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e4])
def test_what_is_not_finite_comes_out_where_it_does_of_the_plain_module(kind, dtype, value):
    one, fast, x = case(kind, dtype, 200)
    x[1, 11, ..., 5] = value
    plain, quick = float64(one.plain(*arguments(one, x))), float64(fast(*arguments(one, x)))
    assert np.array_equal(np.isnan(quick), np.isnan(plain))
    assert np.array_equal(np.isposinf(quick), np.isposinf(plain))
    assert np.array_equal(np.isneginf(quick), np.isneginf(plain))


@KINDS
def test_views_are_read_as_what_they_show(kind):
    one, fast, x = case(kind, mx.bfloat16, 400)
    for view in (x[:, ::2], x[1:, 3:], mx.broadcast_to(x[:1], x.shape)):
        assert rel_l2(float64(fast(*arguments(one, view))), one.exact(float64(view))) < 5e-3


@DTYPES
@pytest.mark.parametrize("empty_row", [False, True])
def test_masked_keys_take_no_part(dtype, empty_row):
    rng = np.random.default_rng(2)
    q, k, v = (mx.array(rng.standard_normal((2, 90, HEADS, CHANNELS), dtype=np.float32)).astype(dtype) for _ in "qkv")
    mask = rng.random((2, 1, 1, 90)) > 0.4
    if empty_row:
        mask[1] = False
    plain, fast = Attend(), replacement(Attend())
    assert rel_l2(float64(fast(q, k, v, mx.array(mask))), float64(plain(q, k, v, mx.array(mask)))) < 1e-3
    kept = np.flatnonzero(mask[0])
    alone = fast(q[:1], k[:1, mx.array(kept)], v[:1, mx.array(kept)])
    assert rel_l2(float64(fast(q, k, v, mx.array(mask))[:1]), float64(alone)) < 1e-3


@DTYPES
def test_queries_of_a_target_read_a_prefix_and_those_of_a_text_read_what_is_before_them(dtype):
    rng = np.random.default_rng(3)
    q, k, v = (mx.array(rng.standard_normal((2, n, HEADS, CHANNELS), dtype=np.float32)) for n in (120, 150, 150))
    q, k, v = (a.astype(dtype) for a in (q, k, v))
    plain, fast = Attend(), replacement(Attend())
    causal = mx.tri(150, dtype=mx.bool_)[None, None, 30:]
    for mask in (None, causal, causal & mx.array(rng.random((2, 1, 1, 150)) > 0.3)):
        assert rel_l2(float64(fast(q, k, v, mask)), float64(plain(q, k, v, mask))) < 1e-3


def test_16_bit_results_are_the_exact_ones_rounded_once():
    one, fast, x = case(Linears, mx.bfloat16, 65)
    rounded = one.exact(float64(x)).astype(ml_dtypes.bfloat16)
    assert np.mean(to_numpy(fast(x)) != rounded) < 2e-3


def test_layer_norm_of_massive_channels_is_more_exact_than_that_of_mlx():
    one, fast, x = case(LayerNorms, mx.float32, 65, massive=True)
    assert rel_l2(float64(fast(x)), one.exact(float64(x))) < 3e-7


@pytest.mark.parametrize("masked", [False, True])
def test_the_model_is_the_same_function(masked):
    model = small_model()
    fast = FastCPU()
    assert fast.preserves_function
    assert rel_l2(rewritten(model, fast, masked=masked), forward(model, masked=masked)) < 2e-6
    model.set_dtype(mx.bfloat16)
    assert rel_l2(rewritten(model, fast, dtype=mx.bfloat16), forward(model, mx.bfloat16)) < 0.02


def test_addresses_and_parameters_stay():
    model = small_model()
    before = {site.path: site.module for site in walk({"transformer": model})}
    with applied({"transformer": model}, {"fast": FastCPU()}) as coverage:
        after = {site.path: site.module for site in walk({"transformer": model})}
        seen = []
        sites = [s for s in walk({"transformer": model}) if s.path.endswith((".to_q", ".gelu", ".attend"))]
        with tapped(sites, lambda call: seen.append(call.output)):
            observed = forward(model)
        assert np.array_equal(observed, forward(model))
    assert len(seen) == CONFIG.num_layers * 4
    assert after.keys() == before.keys()
    assert all(after[path].get("weight") is module.get("weight") for path, module in before.items())
    replaced = sum(after[path] is not module for path, module in before.items())
    assert coverage["fast"].matched == replaced > 25 * CONFIG.num_layers


@pytest.mark.parametrize("module", [Tanh(), RMSNorm(8)])
def test_modules_without_a_replacement(module):
    assert replacement(module) is None


def test_what_a_technique_put_there_stays():
    model = small_model()
    with applied({"transformer": model}, {"ffn": FFNScaling([SITES["feed_forwards"]])}):
        scaled = {s.path: s.module for s in walk({"transformer": model}) if s.path.endswith("img_mlp")}
        with applied({"transformer": model}, {"fast": FastCPU(sites=("transformer_blocks.*.attn.*",))}):
            assert all(s.module is scaled[s.path] for s in walk({"transformer": model}) if s.path in scaled)
    fast = replacement(Linear(4, 4))
    assert replacement(fast) is None
