"""Quantised weights: the bits of each site, the storage, and the distance of the values from the originals."""

import itertools

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from precision_lab.errors import InputError
from precision_lab.instrument.sites import walk
from precision_lab.model.quantized import QuantizedLinear, decoded_weight
from precision_lab.numerics.packing import Quantization
from precision_lab.techniques.base import applied
from precision_lab.techniques.float8_weights import Float8Weights
from precision_lab.techniques.parts.scaled_parts import ScaledLinear
from precision_lab.techniques.parts.weight_storage import model_storage, parameter_storage, storage, weight_storage
from precision_lab.techniques.quantized_weights import MODES, QuantizedWeights
from tests.techniques.configured import SITES, named
from tests.techniques.small_model import forward, rel_l2, rewritten, site, small_model

TO_Q, UP = "transformer_blocks.0.attn.to_q", "transformer_blocks.0.img_mlp.net.0.proj"
ALL_BLOCKS = {"sites": "transformer_blocks.*.{img,txt}_{mod.1,mlp.net.{0.proj,2}}"}


def quantized(path=TO_Q, dtype=mx.bfloat16, **rule):
    """The linear and its replacement by a rule."""
    model = small_model()
    model.set_dtype(dtype)
    address = site(model, path)
    return address.module, QuantizedWeights([{"sites": path, **rule}]).rewrite(address)


def decoded(module):
    """The matrix that a layer multiplies with: its results on the unit vectors, minus its bias."""
    eye = mx.eye(64)
    return np.array(module(eye) - module(mx.zeros((1, 64)))).T


@pytest.mark.parametrize("bits", MODES["affine"].bits)
@pytest.mark.parametrize("group_size", [32, 64])
def test_affine_values_are_a_quarter_of_a_step_off(bits, group_size):
    """As for uniform values rounded to a grid; at the ends of a group, where the grid may stop short, up to a step."""
    linear, layer = quantized(dtype=mx.float32, bits=bits, group_size=group_size)
    weight = np.array(linear.weight).reshape(64, -1, group_size)
    step = (weight.max(axis=-1, keepdims=True) - weight.min(axis=-1, keepdims=True)) / (2**bits - 1)
    error = np.abs(decoded(layer).reshape(weight.shape) - weight) / step
    assert error.max() < 1.05
    assert 0.2 < error.mean() < 0.3


@pytest.mark.parametrize(
    ("rule", "bits"),
    [
        ({"bits": 4}, 4 + 32 / 64),
        ({"bits": 4, "group_size": 32}, 4 + 32 / 32),
        ({"bits": 6}, 6 + 32 / 64),
        ({"bits": 3}, 3 + 32 / 64),
        ({"mode": "mxfp4"}, 4 + 8 / 32),
        ({"mode": "mxfp8"}, 8 + 8 / 32),
        ({"mode": "nvfp4"}, 4 + 8 / 16),
        ({"keep": True}, 16),
    ],
)
def test_bits_per_weight(rule, bits):
    _, layer = quantized(**rule)
    assert storage(layer).bits_per_weight == bits
    assert storage(layer).weights == 64 * 64


def test_storage_of_a_whole_component_is_the_weighted_mean():
    model = small_model()
    model.set_dtype(mx.bfloat16)
    components = {"transformer": model}
    assert weight_storage(components)["transformer"].bits_per_weight == 16
    total = weight_storage(components)["transformer"].weights
    rules = [{**ALL_BLOCKS, "bits": 4}]
    with applied(components, {"q": QuantizedWeights(rules)}):
        after = weight_storage(components)["transformer"]
    covered = 3 * 2 * (64 * 384 + 2 * 64 * 256)
    assert after.weights == total
    assert after.bits == 4.5 * covered + 16 * (total - covered)


def test_parameters_of_a_layer_are_its_weights_scales_and_bias():
    """64 x 64 weights at 4 bits in groups of 64, with a scale and an offset in bfloat16 each, and 64 biases."""
    _, layer = quantized(bits=4)
    assert parameter_storage(layer) == (64 * 64 + 64, 4.5 * 64 * 64 + 16 * 64)
    del layer["bias"]
    assert parameter_storage(layer).bits_per_weight == 4.5
    _, scaled = quantized(mode="nvfp4", tensor_scale=True)
    assert parameter_storage(scaled) == (64 * 64 + 64, 4.5 * 64 * 64 + 32 + 16 * 64), "one scale in fp32 more"
    embedding = nn.Embedding(96, 64)
    embedding.set_dtype(mx.bfloat16)
    assert parameter_storage(embedding) == (96 * 64, 16 * 96 * 64)
    assert parameter_storage(embedding.to_quantized(64, 4)) == (96 * 64, 4.5 * 96 * 64)
    model = small_model()
    model.set_dtype(mx.bfloat16)
    eight = Float8Weights([TO_Q], scale="channel").rewrite(site(model, TO_Q))
    assert parameter_storage(eight) == (64 * 64 + 64, 8 * 64 * 64 + 32 * 64 + 16 * 64)
    wrapped = ScaledLinear(site(model, TO_Q), 2.0, 2.0)
    assert parameter_storage(wrapped) == parameter_storage(site(model, TO_Q).module)


def test_storage_of_a_whole_model_counts_every_parameter_once():
    model = small_model()
    model.set_dtype(mx.bfloat16)
    components = {"transformer": model}
    number = sum(array.size for _, array in tree_flatten(model.parameters()))
    assert model_storage(components) == {"transformer": (number, 16 * number)}
    covered = 3 * 2 * (64 * 384 + 2 * 64 * 256)
    rules = [{**ALL_BLOCKS, "bits": 4}]
    with applied(components, {"q": QuantizedWeights(rules)}):
        assert model_storage(components) == {"transformer": (number, 16 * number - (16 - 4.5) * covered)}
    rules = [{**ALL_BLOCKS, "bits": 4}, {"sites": "**.to_q", "bits": 8}]
    with applied(components, {"q": QuantizedWeights(rules)}):
        mixed = model_storage(components)["transformer"]
        assert mixed.bits == 16 * number - (16 - 4.5) * covered - (16 - 8.5) * 3 * 64 * 64
        assert mixed.bits == 8 * sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def test_the_first_rule_that_matches_decides():
    model = small_model()
    rules = [
        {"sites": "transformer_blocks.1.**.to_q", "keep": True},
        {"sites": "transformer_blocks.*.attn.to_q", "bits": 8},
        {"sites": "transformer_blocks.*.attn.{to_q,to_k}", "bits": 2},
    ]
    with applied({"transformer": model}, {"q": QuantizedWeights(rules)}):
        blocks = model.transformer_blocks
        bits = [[getattr(b.attn[name], "bits", None) for name in ("to_q", "to_k", "to_v")] for b in blocks]
    assert bits == [[8, 2, None], [None, 2, None], [8, 2, None]]


def test_more_bits_and_smaller_groups_are_closer():
    def error(**rule):
        linear, layer = quantized(dtype=mx.float32, **rule)
        return rel_l2(decoded(layer), linear.weight)

    errors = [error(bits=bits) for bits in (2, 3, 4, 5, 6, 8)]
    assert all(coarse > 1.6 * fine for coarse, fine in itertools.pairwise(errors))
    assert error(bits=4, group_size=32) < error(bits=4)
    assert error(mode="mxfp8") < 0.05 < min(error(mode="nvfp4"), error(mode="mxfp4")) < 0.15


def test_the_model_comes_closer_with_the_bits():
    model = small_model()
    plain = forward(model)
    errors = [rel_l2(rewritten(model, QuantizedWeights([{**ALL_BLOCKS, "bits": b}])), plain) for b in (2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


def test_products_are_summed_in_fp32():
    """Against float64 with the same decoded weights only the rounding of the output remains."""
    _, layer = quantized(bits=4)
    x = mx.random.normal((5, 64), key=mx.random.key(1)).astype(mx.bfloat16)
    weight = mx.dequantize(layer.weight, layer.scales, layer.biases).astype(mx.float32)  # rounded to bf16, as x is
    exact = np.array(x.astype(mx.float32)).astype(np.float64) @ np.array(weight).T + np.array(
        layer.bias.astype(mx.float32)
    )
    assert np.array_equal(layer(x).astype(mx.float32), exact.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "rules is empty"),
        ([{"bits": 4}], "sites is missing"),
        ([{"sites": TO_Q, "bits": 7}], "bits is 7, affine has 2, 3, 4"),
        ([{"sites": TO_Q, "mode": "mxfp4", "group_size": 64}], "group_size is 64, mxfp4 has 32"),
        ([{"sites": TO_Q, "mode": "nf4"}], "mode is 'nf4'"),
        ([{"sites": TO_Q, "tensor_scale": True}], "tensor_scale is true, which affine does not have"),
        ([{"sites": TO_Q, "mode": "nvfp4", "tensor_scale": 2}], "tensor_scale is 2, expected true or false"),
        ([{"sites": TO_Q, "bit": 4}], "unknown entry 'bit'. Did you mean bits"),
        ([{"sites": "txt_in", "bits": 4}], "txt_in has 40 input channels, which groups of 64 do not"),
        ([{"sites": TO_Q, "group_size": 128}], "to_q has 64 input channels, which groups of 128"),
        ([{"sites": "norm_out", "bits": 4}], "norm_out is AdaLayerNormContinuous, expected Linear"),
        ([{"sites": "norm_uot", "keep": True}], "matches nothing"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(rules, message):
    with pytest.raises(InputError, match=message):
        rewritten(small_model(), QuantizedWeights(rules))


def float8(scale, path=TO_Q, quantize_input=False, weight=None):
    model = small_model()
    address = site(model, path)
    if weight is not None:
        address.module.weight = mx.array(weight)
    return address.module, Float8Weights((path,), scale, quantize_input).rewrite(address)


def test_mlx_rounds_to_float8_as_ml_dtypes_does():
    """Every bfloat16 within range."""
    values = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    values = values[np.abs(values.astype(np.float32)) <= 448]
    ours = mx.from_fp8(mx.to_fp8(mx.array(values.astype(np.float32))), mx.float32)
    assert np.array_equal(ours, values.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


@pytest.mark.parametrize(("scale", "axes"), [("none", None), ("tensor", (0, 1)), ("channel", (1,))])
def test_float8_weights_are_those_of_ml_dtypes(scale, axes):
    weight = np.random.default_rng(5).standard_normal((64, 64)).astype(np.float32)
    weight *= 10.0 ** np.random.default_rng(6).integers(-4, 2, (64, 1))
    weight = weight.astype(np.float32)
    _, layer = float8(scale, weight=weight)
    factor = np.float32(1) if axes is None else np.abs(weight).max(axis=axes, keepdims=True) / np.float32(448)
    expected = (weight / factor).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * factor
    assert np.allclose(decoded(layer), expected, rtol=1e-5, atol=1e-5)
    bits = storage(layer).bits_per_weight
    assert bits == {"none": 8 + 32 / 4096, "tensor": 8 + 32 / 4096, "channel": 8 + 32 / 64}[scale]


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
@pytest.mark.parametrize("magnitude", [1e-4, 0.02, 30])
def test_nvfp4_with_a_scale_a_tensor_is_that_of_published_files(dtype, magnitude):
    linear = nn.Linear(64, 48)
    drawn = np.random.default_rng(3).standard_normal((48, 64), dtype=np.float32) * np.float32(magnitude)
    drawn[5] = 0
    linear.weight = mx.array(drawn).astype(dtype)
    weight = np.array(linear.weight.astype(mx.float32)).reshape(48, 4, 16)
    scale = np.abs(weight).max() / np.float32(6 * 448)
    groups = (np.abs(weight / scale).max(-1, keepdims=True) / 6).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    codes = np.divide(weight / scale, groups, out=np.zeros_like(weight), where=groups > 0)
    expected = codes.astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * groups * scale
    linear.bias = mx.random.normal((48,), key=mx.random.key(1))
    packed = QuantizedLinear.packed(linear, Quantization.checked("", "nvfp4", tensor_scale=True))
    ours = np.array(decoded_weight(packed, mx.float32)).reshape(weight.shape)
    # MLX multiplies by a reciprocal, so a value near the middle of two codes may take the other one
    assert np.mean(np.abs(ours - expected) > 1e-6 * np.abs(expected)) < 0.005
    np.testing.assert_allclose(np.linalg.norm(ours - weight), np.linalg.norm(expected - weight), rtol=1e-3)
    x = mx.random.normal((3, 64), key=mx.random.key(0))
    exact = np.array(x, np.float64) @ ours.reshape(48, 64).T.astype(np.float64) + np.array(linear.bias)
    np.testing.assert_allclose(np.array(packed(x)), exact, rtol=2e-5, atol=2e-5 * np.abs(exact).max())
    assert storage(packed).bits_per_weight == pytest.approx(4.5 + 32 / (48 * 64))


def test_a_scale_a_tensor_saves_small_weights_from_the_range_of_e4m3():
    def error(**rule):
        linear = nn.Linear(64, 32)
        linear.weight = mx.random.normal((32, 64), scale=1e-4, key=mx.random.key(0))
        packed = QuantizedLinear.packed(linear, Quantization.checked("", "nvfp4", **rule))
        return rel_l2(decoded_weight(packed, mx.float32), linear.weight)

    assert error(tensor_scale=True) < 0.11
    assert error() == 1  # the scales of the groups become zero


def test_what_a_scale_is_for():
    """Without a scale small weights vanish; with one for the tensor a large channel costs the others precision."""
    small = np.random.default_rng(7).standard_normal((64, 64)).astype(np.float32) * 1e-4
    assert not decoded(float8("none", weight=small)[1]).any()
    assert rel_l2(decoded(float8("tensor", weight=small)[1]), small) < 0.04
    mixed = small.copy()
    mixed[0] *= 1e6
    assert rel_l2(decoded(float8("tensor", weight=mixed)[1])[1:], small[1:]) > 0.5
    assert rel_l2(decoded(float8("channel", weight=mixed)[1])[1:], small[1:]) < 0.04


def test_quantised_inputs_have_a_scale_a_token_and_hide_no_overflow():
    linear, layer = float8("channel", quantize_input=True)
    x = mx.random.normal((1, 6, 64), key=mx.random.key(2)) * (10.0 ** mx.arange(6))[None, :, None]
    for token in range(6):
        assert rel_l2(layer(x)[0, token], linear(x)[0, token]) < 0.06
    assert mx.isfinite(layer(mx.zeros((1, 2, 64)))).all()
    bad = layer(mx.concatenate([x[:, :1] * mx.array(np.inf), x[:, 1:]], axis=1))
    assert not mx.isfinite(bad[0, 0]).any()
    assert mx.isfinite(bad[0, 1:]).all()


def test_float8_refusals():
    with pytest.raises(InputError, match=r"scale is 'row', expected one of none, tensor, channel"):
        Float8Weights(SITES["block_linears"], scale="row")
    with pytest.raises(InputError, match="norm_out is AdaLayerNormContinuous, expected Linear"):
        rewritten(small_model(), Float8Weights(sites=("norm_out",)))


def test_all_linears_of_the_blocks_are_covered():
    """The default sites name every linear of a block once."""
    model = small_model()
    with applied({"transformer": model}, {"f": Float8Weights(SITES["block_linears"])}) as coverage:
        assert not [
            s for s in walk({"transformer": model}) if s.block is not None and storage(s.module).bits_per_weight > 9
        ]
    assert coverage["f"].matched == 3 * 14


@pytest.mark.parametrize(("channels", "size"), [(64, 64), (96, 32), (128, 64), (192, 64), (288, 32)])
def test_a_group_size_that_is_not_stated_fits_the_layer(channels, size):
    model = small_model()
    linear = model.img_in = nn.Linear(channels, 8)
    address = site(model, "img_in")
    layer = QuantizedWeights([{"sites": "img_in", "bits": 8}]).rewrite(address)
    assert layer.group_size == size
    x = mx.random.normal((5, channels), key=mx.random.key(4))
    assert rel_l2(layer(x), linear(x)) < 0.01
    stated = QuantizedWeights([{"sites": "img_in", "bits": 8, "group_size": 64}])
    if channels % 64:
        with pytest.raises(InputError, match=f"{channels} input channels, which groups of 64 do not divide"):
            stated.rewrite(address)
    else:
        assert stated.rewrite(address).group_size == 64


def test_the_boundary_recipe_keeps_the_first_and_last_block_at_any_depth():
    model = small_model()
    with applied({"transformer": model}, named("affine4_boundary16")):
        quantised = {s.block for s in walk({"transformer": model}) if isinstance(s.module, nn.QuantizedLinear)}
    assert quantised == {1}
