"""`inflate` multiplies both streams by a power of two and keeps the function; an inexact factor is rejected.

There is no tolerance. Without overflow and underflow every product with a power of two is exact. The fp32 and bf16
results are therefore compared bit for bit, and the streams with the plain streams times the factor.
"""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from precision_lab.errors import InputError
from precision_lab.model.layers import LayerNorm
from precision_lab.model.qwen_image.block import TransformerBlock
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.qwen_image.inflate import exponent, inflate_streams
from tests.model.oracle import copy_of, ours, random_inputs, random_transformer, relative_l2
from tests.spread import thinned

FACTORS = [2.0**-20, 2.0**-8, 2.0**-1, 2, 2**4, 2**12, 2.0**25]
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
LAST_LINEARS = ("to_out.0", "to_add_out", "img_mlp.net.2", "txt_mlp.net.2")


@pytest.fixture(scope="module")
def inputs():
    return random_inputs(np.random.default_rng(0), (5, 7), batch=2, text_width=64, lengths=(11, 6))


@pytest.fixture(scope="module")
def few_inputs():
    """One sample of few tokens, for 60 blocks."""
    return random_inputs(np.random.default_rng(0), (3, 3), text_width=64, tokens=7)


@pytest.fixture
def folder(small_checkpoint, tmp_path):
    """A copy that tests may damage."""
    return shutil.copytree(small_checkpoint, tmp_path / "checkpoint")


def flat(model) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def streams(transformer, inputs, dtype) -> list[np.ndarray]:
    """Both residual streams after every block, fp32."""
    seen = []
    original = TransformerBlock.__call__

    def call(self, *args):
        out = original(self, *args)
        seen.extend(np.array(stream.astype(mx.float32)) for stream in out)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformerBlock, "__call__", call)
        ours(transformer, inputs, dtype)
    return seen


def latents_and_pixels(checkpoint, dtype):
    pipeline = checkpoint.pipeline(dtype)
    grid = pipeline.grid(48, 32)
    cond, uncond = pipeline.encode(["two red circles"]), pipeline.encode([" "])
    *_, last = pipeline.denoise(pipeline.noise(0, grid), grid, 2, cond, uncond, 4.0)
    return np.array(last.latents.astype(mx.float32)), np.array(pipeline.decode(last.latents, grid))


def refusal(action) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# --- the weights


@pytest.mark.parametrize("factor", FACTORS)
def test_weights_are_scaled_exactly_and_no_others(small_checkpoint, factor):
    plain = flat(Checkpoint(small_checkpoint).transformer(mx.float32))
    inflated = flat(Checkpoint(small_checkpoint, inflate=factor).transformer(mx.float32))
    assert inflated.keys() == plain.keys()
    gate = 2.0 ** (exponent(factor) // 2)
    assert max(gate, factor / gate) <= 2 * min(gate, factor / gate), "as equal as powers of two allow"
    counts = {"input": 0, "gate": 0, "output": 0, "other": 0}
    for name, parameter in inflated.items():
        assert parameter.dtype == plain[name].dtype == mx.bfloat16
        was, now = (np.array(p.astype(mx.float32)) for p in (plain[name], parameter))
        module = name.rpartition(".")[0]
        if module in ("img_in", "txt_in"):
            kind, expected = "input", was * np.float32(factor)
        elif module.endswith(LAST_LINEARS):
            kind, expected = "output", was * np.float32(factor / gate)
        elif module.endswith("_mod.1"):
            kind, expected = "gate", was.copy()
            width = len(was) // 6
            expected[2 * width : 3 * width] *= np.float32(gate)
            expected[5 * width :] *= np.float32(gate)
        else:
            kind, expected = "other", was
        counts[kind] += 1
        np.testing.assert_array_equal(now, expected, err_msg=name)
    blocks = 4
    assert (counts["input"], counts["gate"], counts["output"]) == (4, 4 * blocks, 8 * blocks)


def test_factor_one_changes_nothing(small_checkpoint):
    plain, inflated = Checkpoint(small_checkpoint), Checkpoint(small_checkpoint, inflate=1)
    assert plain.fingerprint() == inflated.fingerprint()
    expected = flat(plain.transformer(mx.float16))
    for name, parameter in flat(inflated.transformer(mx.float16)).items():
        assert mx.array_equal(parameter, expected[name]), name


def test_the_factor_is_part_of_the_fingerprint(small_checkpoint):
    prints = {Checkpoint(small_checkpoint, inflate=factor).fingerprint() for factor in (1, 2, 2.0, 0.5, 4)}
    assert len(prints) == 4


def test_fp32_weights_may_be_scaled_further_than_their_fp16_copy(small_checkpoint):
    """weights_dtype rounds first: the factor must then fit that dtype."""
    Checkpoint(small_checkpoint, weights_dtype=mx.float32, inflate=2**20).transformer(mx.float32)
    for changes in ({"weights_dtype": mx.float16}, {}):
        compute = mx.float32 if changes else mx.float16
        message = refusal(lambda c=changes, d=compute: Checkpoint(small_checkpoint, inflate=2**20, **c).transformer(d))
        assert message.startswith("model.inflate=1048576: ")
        assert "overflows in float16" in message
        assert message.endswith("The largest power of two that fits is 2048")
        Checkpoint(small_checkpoint, inflate=2048, **changes).transformer(compute)


# --- the function


@pytest.mark.parametrize("factor", thinned(FACTORS, keep=3))
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_output_is_identical_and_streams_are_scaled(small_checkpoint, inputs, dtype, factor):
    plain = Checkpoint(small_checkpoint).transformer(dtype)
    inflated = Checkpoint(small_checkpoint, inflate=factor).transformer(dtype)
    np.testing.assert_array_equal(ours(inflated, inputs, dtype), ours(plain, inputs, dtype))
    expected, actual = streams(plain, inputs, dtype), streams(inflated, inputs, dtype)
    assert len(actual) == 2 * 4
    for before, after in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(after, before * np.float32(factor))


@pytest.mark.parametrize(
    ("dtype", "factor"),
    thinned([(t, f) for f in (2**12, 2**4, 2.0**-8) for t in (mx.bfloat16, mx.float32)], 2),
    ids=str,
)
def test_latents_and_pictures_are_identical(small_checkpoint, dtype, factor):
    plain = latents_and_pixels(Checkpoint(small_checkpoint), dtype)
    inflated = latents_and_pixels(Checkpoint(small_checkpoint, inflate=factor), dtype)
    for expected, actual in zip(plain, inflated, strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("factor", thinned([2.0**-12, 2**12], [2.0**-12]))
def test_60_growing_blocks_are_identical(micro_synthetic, few_inputs, factor):
    plain, inflated = (Checkpoint(micro_synthetic, inflate=f).transformer(mx.float32) for f in (1, factor))
    np.testing.assert_array_equal(ours(inflated, few_inputs), ours(plain, few_inputs))


@pytest.mark.parametrize(("seed", "layers", "heads", "axes"), [(1, 3, 4, (4, 6, 6)), (2, 2, 1, (16, 24, 24))])
def test_of_any_weights(seed, layers, heads, axes):
    model = random_transformer(seed, layers, heads, axes)
    inputs = random_inputs(np.random.default_rng(seed), (3, 4), batch=2)
    expected = ours(copy_of(model), inputs)
    for factor in FACTORS:
        inflated = copy_of(model)
        inflate_streams(inflated, factor, mx.float32)
        np.testing.assert_array_equal(ours(inflated, inputs), expected)


def test_with_eps_left_alone_a_small_factor_would_be_another_function(small_checkpoint, inputs):
    """Without scaling LayerNorm's eps, the error is 1e-3 at 2^-8, and it grows as G^-2."""
    expected = ours(Checkpoint(small_checkpoint).transformer(mx.float32), inputs)
    errors = []
    for factor in (2**12, 2.0**-8, 2.0**-9):
        model = Checkpoint(small_checkpoint, inflate=factor).transformer(mx.float32)
        for norm in model.modules():
            if isinstance(norm, LayerNorm):
                norm.eps = 1e-6
        errors.append(relative_l2(ours(model, inputs), expected))
    assert errors[0] < 1e-6
    assert 3e-4 < errors[1] < 1e-2
    assert errors[2] / errors[1] == pytest.approx(4, rel=0.1)


def test_float16_overflows(small_checkpoint, inputs):
    """The activations no longer fit float16, although every weight does."""
    plain, inflated = (Checkpoint(small_checkpoint, inflate=f).transformer(mx.float16) for f in (1, 2048))
    assert np.isfinite(ours(plain, inputs, mx.float16)).all()
    assert all(mx.isfinite(p).all() for p in flat(inflated).values())
    assert not np.isfinite(ours(inflated, inputs, mx.float16)).all()


def test_float16_is_pulled_under_its_end(micro_synthetic, few_inputs):
    """At 2^-10, streams of 5e7 fit float16, which is then closer to fp32 than bfloat16 is."""
    expected = ours(Checkpoint(micro_synthetic).transformer(mx.float32), few_inputs)
    assert not np.isfinite(ours(Checkpoint(micro_synthetic).transformer(mx.float16), few_inputs, mx.float16)).all()
    pulled = ours(Checkpoint(micro_synthetic, inflate=2.0**-10).transformer(mx.float16), few_inputs, mx.float16)
    bf16 = ours(Checkpoint(micro_synthetic).transformer(mx.bfloat16), few_inputs, mx.bfloat16)
    assert relative_l2(pulled, expected) < 0.3 * relative_l2(bf16, expected)


# --- rejected factors and weights


@pytest.mark.parametrize(
    ("factor", "powers"),
    [
        (3, "2 or 4"),
        (1.5, "1 or 2"),
        (4095, "2048 or 4096"),
        (0.3, "0.25 or 0.5"),
        (2.5e-4, "0.000244140625 or 0.00048828125"),
    ],
)
def test_other_factors_name_the_nearest_powers(factor, powers):
    assert refusal(lambda: exponent(factor)).endswith(f"Nearest: {powers}")


@pytest.mark.parametrize("factor", [0, -2, 0.0, float("nan"), float("inf"), 2.0**54, 2.0**-54, 10**400])
def test_factors_that_are_none(factor):
    assert "expected a power of two from 2^-53 to 2^53" in refusal(lambda: exponent(factor))


def test_nearest_powers_are_read_back_exactly():
    for power in range(-53, 54):
        assert exponent(2.0**power) == power
    message = refusal(lambda: exponent(2.0**-30 * 1.1))
    below, above = message.rpartition("Nearest: ")[2].split(" or ")
    assert (float(below), float(above)) == (2.0**-30, 2.0**-29)


@pytest.mark.parametrize(
    ("dtype", "value", "factor", "verb"),
    [
        (np.float16, 40000.0, 2**12, "overflows in float16"),
        (np.float16, 6e-8, 2.0**-3, "loses bits in float16"),
        (np.float16, 2.0**-14 * (1 + 2**-10), 2.0**-3, "loses bits in float16"),
        (np.float32, 3e38, 2**4, "overflows in float32"),
        (np.float32, 2.0**-126 * (1 + 2**-20), 2.0**-50, "loses bits in float32"),
    ],
)
def test_weights_that_would_not_be_exact_are_named(folder, dtype, value, factor, verb):
    """A large value in the bias of a gate: the power of two in the message fits, and the next one does not."""
    name = "transformer_blocks.2.txt_mod.1.bias"
    tensors = {n: t.astype(dtype) for n, t in load_file(folder / TRANSFORMER).items()}
    for other in tensors.values():
        if dtype == np.float16:
            other[...] = other.astype(np.float32).clip(-8, 8).round(2)
    tensors[name][-1] = value
    save_file(tensors, folder / TRANSFORMER)
    message = refusal(lambda: Checkpoint(folder, inflate=factor).transformer(mx.float32))
    assert message.startswith(f"model.inflate={factor:.17g}: {name} {verb} (1 such tensors)")
    fits = float(message.rpartition(" ")[2])
    Checkpoint(folder, inflate=fits).transformer(mx.float32)
    refusal(lambda: Checkpoint(folder, inflate=fits * (2 if factor > 1 else 0.5)).transformer(mx.float32))


def test_weights_that_are_not_finite_stay_so(folder):
    tensors = load_file(folder / TRANSFORMER)
    tensors["img_in.bias"][:3] = np.nan, np.inf, -np.inf
    save_file(tensors, folder / TRANSFORMER)
    bias = flat(Checkpoint(folder, inflate=4).transformer(mx.float16))["img_in.bias"]
    assert np.isnan(np.array(bias)[0])
    assert np.array_equal(np.array(bias)[1:3], [np.inf, -np.inf])


def test_a_refusal_changes_nothing(small_checkpoint):
    model = Checkpoint(small_checkpoint, weights_dtype=mx.float16).transformer(mx.float32)
    before = {name: np.array(p) for name, p in flat(model).items()}
    refusal(lambda: inflate_streams(model, 2**30, mx.float32))
    assert {norm.eps for norm in model.modules() if isinstance(norm, LayerNorm)} == {1e-6}
    for name, parameter in flat(model).items():
        np.testing.assert_array_equal(np.array(parameter), before[name])


def test_the_kind_of_weights_stays(small_checkpoint):
    kind = json.loads((small_checkpoint / "model_index.json").read_text())["_weights"]
    assert Checkpoint(small_checkpoint, inflate=8).origin == kind
