"""The arbiter on operations of known accuracy, and on the embedded model in three dtypes."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import precision_lab
from precision_lab.errors import InputError
from precision_lab.instrument.observation import Observation, Position
from precision_lab.lab.observing import observing
from precision_lab.model import language_body, layers
from precision_lab.model.layers import Add, Linear
from precision_lab.model.modulation import GatedAdd
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.qwen_image_21 import block as block_21
from precision_lab.model.qwen_image_21 import transformer as transformer_21
from precision_lab.model.qwen_image_21.config import Stage
from precision_lab.model.qwen_image_21.vae_stages import AverageDown
from precision_lab.model.rotary import Grid
from precision_lab.model.text_to_image.sampler import EulerStep
from precision_lab.model.vae_blocks import ChannelNorm
from precision_lab.probes.arbiter import Arbiter, exact
from precision_lab.techniques.base import applied
from precision_lab.techniques.unfused_attention import UnfusedAttention
from tests.model.rounding import Draw

MICRO = Path(precision_lab.__file__).parent / "checkpoints" / "micro"
BLOCK = "transformer_blocks.{0,3}"
SITES = (
    BLOCK + ".{img,txt}_{norm1,norm2,modulate1,add1,add2}",
    BLOCK + ".{img,txt}_mod.*",
    BLOCK + ".{img,txt}_mlp.net.{0.proj,0.gelu,2}",
    BLOCK + ".attn.*",
    BLOCK + ".attn.to_out.0",
)
ULP = {mx.float32: 2.0**-23, mx.bfloat16: 2.0**-8, mx.float16: 2.0**-11}


def judge(module, inputs, output):
    recorder = Arbiter(sites=()).recorder()
    place = Position(None, None, None, "transformer", "here", "out", "-", None, 0)
    recorder.observe([Observation(place, output, tuple(inputs), module)])
    return recorder.rows


def forward(model, dtype, **techniques):
    rng = np.random.default_rng(0)
    latents, text = (mx.array(rng.standard_normal((1, n, 64)).astype(np.float32)) for n in (12, 5))
    mask = mx.array([[1, 1, 1, 1, 0]])
    recorder = Arbiter(sites=SITES).recorder()
    with applied({"transformer": model}, techniques), observing({"transformer": model}, [recorder]):
        mx.eval(model(latents.astype(dtype), mx.array([0.5]), text.astype(dtype), Grid(3, 4), mask))
    return recorder.rows


def of(rows, ending):
    found = [row for row in rows if row["site"].endswith(ending)]
    assert found
    return found


def test_a_planted_error_is_the_operations_own():
    residual, gate = mx.array([[[256.0, 1.0]]], mx.bfloat16), mx.array([[1.0, 2.0]], mx.bfloat16)
    update = mx.array([[[1.0, 1.0]]], mx.bfloat16)  # exactly 257, half an ulp away from 256, and 3
    (row,) = judge(GatedAdd(), [residual, gate, update], GatedAdd()(residual, gate, update))
    assert row["own_ulp_max"] == 0.5
    assert row["own_misrounded_pct"] == 0
    (row,) = judge(GatedAdd(), [residual, gate, update], mx.array([[[258.0, 3.0]]], mx.bfloat16))
    assert row["own_ulp_max"] == 0.5  # the same distance, but not the result of ties to even
    assert row["own_misrounded_pct"] == 50
    assert (row["dtype"], row["shape"], row["numel"]) == ("bfloat16", "1x1x2", 2)


def test_what_is_unknown_or_not_finite_has_no_row():
    x = mx.ones((1, 2))
    assert judge(nn.Identity(), [x], x) == []
    linear = Linear(2, 2)
    assert judge(linear, [mx.array([[np.inf, 1.0]])], x) == []
    assert len(judge(linear, [x], linear(x))) == 1


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_the_embedded_models_operations(dtype):
    rows = forward(Checkpoint(MICRO).transformer(dtype), dtype)
    sites = {row["site"] for row in rows}
    assert len(rows) == len(sites) == 2 * (10 + 4 + 6 + 17)  # attn.to_out itself is no operation
    for row in rows:
        assert row["own_overflow"] == 0
        assert row["rounding_rel_l2"] <= min(row["own_rel_l2"], ULP[dtype])  # no implementation does better
    # computed in fp32 and rounded once: almost the best possible, unless the dtype is fp32 itself
    if dtype != mx.float32:
        for name in ("gelu", ".attend", "rotary_q", "to_q", "net.2", "norm1", "_mod.1"):
            assert all(row["own_rel_l2"] < 1.01 * row["rounding_rel_l2"] for row in of(rows, name)), name
        # x * (1 + scale) + shift rounds three times, residual + gate * update twice
        for name in ("modulate1", "add1"):
            assert any(row["own_misrounded_pct"] > 1 for row in of(rows, name)), name
    assert all(row["own_rel_l2"] < 4 * ULP[dtype] for row in rows)


def zero_centred(dims):
    norm = transformer_21.ZeroCentredRMSNorm(dims, 1e-6)
    norm.weight = mx.linspace(-0.5, 0.5, dims)
    return norm


OTHERS = {
    "affine LayerNorm": (lambda: nn.LayerNorm(48), lambda d: (d.normal(1, 9, 48),)),
    "RMSNorm of mlx.nn": (lambda: nn.RMSNorm(48), lambda d: (d.normal(1, 9, 48),)),
    "norm of the VAE": (lambda: ChannelNorm(24), lambda d: (d.normal(1, 4, 5, 24),)),
    "average of a stage": (lambda: AverageDown(Stage(12, 24, 2, 2)), lambda d: (d.normal(1, 4, 6, 12),)),
    "rotation of halves": (language_body.Rotary, lambda d: (d.normal(1, 9, 3, 16), language_body.rotation(9, 16, 1e6))),
    "causal attention": (
        language_body.Attend,
        lambda d: (d.normal(1, 9, 4, 16), d.normal(1, 9, 2, 16), d.normal(1, 9, 2, 16), "causal"),
    ),
    "masked attention": (
        language_body.Attend,
        lambda d: (
            *(d.normal(1, 9, heads, 16) for heads in (4, 2, 2)),
            mx.array(np.tri(9, dtype=bool) & (np.arange(9) < 6) | np.eye(9, dtype=bool))[None, None],
        ),
    ),
    "Euler step": (EulerStep, lambda d: (d.normal(1, 9, 16), d.normal(1, 9, 16), mx.array(-0.1))),
    "add": (Add, lambda d: (d.normal(1, 9, 16), d.normal(1, 9, 16))),
    "product": (layers.Multiply, lambda d: (d.normal(1, 9, 16), d.normal(1, 9, 16))),
    "tanh": (layers.Tanh, lambda d: (d.normal(1, 9, 16),)),
    "modulation without a shift": (block_21.Modulate, lambda d: (d.normal(2, 9, 16), d.normal(2, 16))),
    "modulation of each token": (block_21.Modulate, lambda d: (d.normal(2, 9, 16), d.normal(2, 9, 16))),
    "gate of each token": (GatedAdd, lambda d: (d.normal(2, 9, 16), d.normal(2, 9, 16), d.normal(2, 9, 16))),
    "zero-centred norm": (lambda: zero_centred(48), lambda d: (d.normal(1, 9, 48),)),
    "SiLU of mlx.nn": (nn.SiLU, lambda d: (d.normal(1, 9, 16),)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_further_operations_are_nearly_exact_in_fp32(name):
    """An oracle of another operation would be off by far more than rounding."""
    build, inputs = OTHERS[name]
    module, arguments = build(), inputs(Draw("float16", 0))
    arguments = [x.astype(mx.float32) if isinstance(x, mx.array) and x.dtype == mx.float16 else x for x in arguments]
    arrays = [array for x in arguments for array in (x if isinstance(x, tuple) else [x]) if isinstance(array, mx.array)]
    (row,) = judge(module, arrays, module(*arguments))
    assert row["own_rel_l2"] < 1e-6


def test_a_class_of_somebody_else_can_be_registered():
    class Doubled(nn.Module):
        def __call__(self, x):
            return x + x

    class Again(Doubled):
        pass

    x = mx.ones((1, 2))
    assert judge(Doubled(), [x], x + x) == []
    exact.register(Doubled, lambda module, inputs: 2.0 * inputs[0].astype(np.float64))
    (row,) = judge(Again(), [x], x + x)
    assert row["own_misrounded_pct"] == 0


def test_one_call_in_every_so_many():
    linear = Linear(2, 2)
    x = mx.ones((1, 2))
    for every, expected in ((1, 7), (3, 3), (100, 1)):
        recorder = Arbiter(sites=(), every=every).recorder()
        for order in range(7):
            place = Position("cond", order, None, "transformer", "here", "out", "-", None, order)
            recorder.observe([Observation(place, linear(x), (x,), linear)])
        assert len(recorder.rows) == expected
        assert recorder.rows[0]["step"] == 0
    for every in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="every is"):
            Arbiter(sites=(), every=every)


def test_an_operation_made_worse_stands_out():
    model = Checkpoint(MICRO).transformer(mx.bfloat16)
    plain = of(forward(model, mx.bfloat16), ".attend")
    unfused = of(forward(model, mx.bfloat16, unfused=UnfusedAttention()), ".attend")
    for before, after in zip(plain, unfused, strict=True):
        assert after["own_rel_l2"] > 1.5 * before["own_rel_l2"]
        assert after["rounding_rel_l2"] == pytest.approx(before["rounding_rel_l2"], rel=0.2)
