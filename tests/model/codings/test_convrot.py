"""Codings in a rotated basis."""

import mlx.core as mx
import numpy as np
import pytest
import torch

from precision_lab.errors import InputError
from precision_lab.model.coded import CodedLinear
from precision_lab.model.codings.convrot import GROUPS, ConvRot, ConvRotInputs, regular_hadamard, rotated
from precision_lab.model.codings.int4 import Int4, Int4Inputs
from precision_lab.model.codings.int8 import Int8, Int8Inputs
from precision_lab.model.codings.wide import Wide
from tests.model.codings.kitchen import adversarial, eager, in_torch

CASES = sorted(adversarial(np.random.default_rng(0)))
CODINGS = {"int8": ConvRot(Int8()), "int4": ConvRot(Int4(group=None))}
INPUTS = {"int8": Int8Inputs(), "int4": Int4Inputs(group=None)}


def theirs(bits, weight, group=256):
    """Codes, scales (rows, 1) and decoded weight of comfy-kitchen."""
    if bits == "int8":
        kernels = eager("quantization")
        codes, scales = kernels.quantize_int8_convrot_weight(in_torch(weight), group)
        return codes, scales, kernels.dequantize_int8_convrot_weight(codes, scales, group)
    kernels = eager("convrot_w4a4")
    codes, scales = kernels.quantize_convrot_w4a4_weight(in_torch(weight), group)
    return codes, scales[:, None], kernels.dequantize_convrot_w4a4_weight(codes, scales, group)


def stored(scales, weight, bits):
    """Their scales as we store them: int8 has 1 for a row of zeros."""
    zero = ~weight.any(axis=1, keepdims=True)
    return np.where(zero & (bits == "int8"), 1, scales.numpy())


def unpacked(codes, bits):
    codes = in_torch(codes) if isinstance(codes, mx.array) else codes
    return (eager("svdquant")._unpack_int4_row_major(codes) if bits == "int4" else codes).numpy().astype(int)


def of_two_sums(codes, scales, bits, group=256):
    """By how much two orders of summation may differ: 2 n u times the sum of n magnitudes (Higham 2002, 3.1)."""
    terms = np.abs(unpacked(codes, bits) * scales.numpy()).reshape(-1, group) / np.sqrt(group)
    return np.repeat(2 * group * 2.0**-24 * terms.sum(axis=1), group).reshape(len(codes), -1)


def rel(a, b):
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("size", [4, *GROUPS])
def test_the_matrix_is_that_of_comfy_kitchen_orthonormal_and_regular(size):
    matrix = regular_hadamard(size).astype(np.float64)
    np.testing.assert_array_equal(matrix, eager("convrot_w4a4")._build_hadamard(size).numpy())
    np.testing.assert_array_equal(matrix @ matrix.T, np.eye(size))
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(matrix.sum(axis=0), 1)


@pytest.mark.parametrize("channels", [256, 768, 320, 48])
def test_the_rotation_cancels_in_a_product(channels):
    """In float64, by the groups that the coding chooses."""
    rng = np.random.default_rng(channels)
    weight, x = rng.standard_normal((10, channels)), rng.standard_normal((7, channels))
    group = max(g for g in GROUPS if channels % g == 0)
    blocks = np.kron(np.eye(channels // group), regular_hadamard(group).astype(np.float64))
    np.testing.assert_allclose((x @ blocks) @ (weight @ blocks.T).T, x @ weight.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.array(rotated(mx.array(x.astype(np.float32)), 256)), x @ blocks, rtol=0, atol=3e-6)
    exact = ConvRot(Wide())
    arrays = exact.encode(mx.array(weight.astype(np.float32)))
    assert rel(np.array(exact.product(arrays, mx.array(x.astype(np.float32)))), x @ weight.T) < 1e-6


@pytest.mark.parametrize("bits", CODINGS)
@pytest.mark.parametrize("case", CASES)
def test_codes_and_values_are_those_of_comfy_kitchen(case, bits):
    """Sums of a group are rounded in another order: a value in the middle of two codes may take the other one."""
    weight = adversarial(np.random.default_rng(3))[case]
    codes, scales, decoded = theirs(bits, weight)
    coding = CODINGS[bits]
    arrays = coding.encode(mx.array(weight))
    assert arrays["weight"].dtype == mx.int8
    np.testing.assert_allclose(np.array(arrays["scale"]), stored(scales, weight, bits), rtol=1e-6)
    difference = np.abs(unpacked(arrays["weight"], bits) - unpacked(codes, bits))
    assert difference.max() <= 1
    assert difference.mean() < 1e-4
    same = {"weight": mx.array(codes.numpy()), "scale": mx.array(scales.numpy())}
    assert (np.abs(np.array(coding.decode(same)) - decoded.numpy()) <= of_two_sums(codes, scales, bits)).all()


@pytest.mark.parametrize("bits", CODINGS)
@pytest.mark.parametrize("group", GROUPS)
def test_where_the_rotation_is_exact_so_is_the_parity(bits, group):
    """Sums of whole numbers are, in any order."""
    rng = np.random.default_rng(group)
    weight = rng.integers(-4000, 4001, (40, 768)).astype(np.float32) * 2.0 ** rng.integers(-30, 30, (40, 1))
    weight = weight.astype(np.float32)
    weight[3] = 0
    codes, scales, decoded = theirs(bits, weight, group)
    coding = ConvRot(CODINGS[bits].coding, group)
    arrays = coding.encode(mx.array(weight))
    np.testing.assert_array_equal(np.array(arrays["weight"]), codes.numpy())
    np.testing.assert_array_equal(np.array(arrays["scale"]), stored(scales, weight, bits))
    bound = of_two_sums(codes, scales, bits, group)
    assert (np.abs(np.array(coding.decode(arrays)) - decoded.numpy()) <= bound).all()


@pytest.mark.parametrize("bits", CODINGS)
def test_the_product_of_few_bits_is_that_of_comfy_kitchen(bits):
    rng = np.random.default_rng(11)
    weight = rng.integers(-500, 501, (24, 512)).astype(np.float32) / 512
    x = rng.integers(-500, 501, (9, 512)).astype(np.float32) / 64
    bias = rng.standard_normal(24).astype(np.float32)
    codes, scales, _ = theirs(bits, weight)
    if bits == "int8":
        linear = eager("quantization").int8_linear
        expected = linear(in_torch(x), codes, scales, in_torch(bias), torch.float32, convrot=True)
    else:
        expected = eager("convrot_w4a4").convrot_w4a4_linear(in_torch(x), codes, scales[:, 0], in_torch(bias))
    ours = CodedLinear.encoded(CODINGS[bits], mx.array(weight), mx.array(bias), INPUTS[bits])(mx.array(x))
    assert rel(np.array(ours), expected.numpy()) < 1e-6


@pytest.mark.parametrize(("coding", "inputs"), [(Int8(), Int8Inputs()), (Int4(group=None), Int4Inputs(group=None))])
def test_an_outlying_channel_spoils_rows_but_not_rotated_ones(coding, inputs):
    """One channel of the weight, then one of the inputs; what the others lose is measured without it."""
    rng = np.random.default_rng(12)
    weight, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 512), (32, 512)))
    weight[:, 99] = 0
    x[:, 37] = 0

    def error(coding, inputs=None):
        linear = CodedLinear.encoded(coding, mx.array(weight), inputs=inputs)
        return rel(np.array(linear(mx.array(x))), x @ weight.T)

    even = {name: error(c) for name, c in (("plain", coding), ("rotated", ConvRot(coding)))}
    assert even["rotated"] == pytest.approx(even["plain"], rel=0.15)
    weight[:, 37] *= 60
    assert error(coding) > 4 * even["plain"]
    assert error(ConvRot(coding)) < 0.5 * error(coding)
    weight[:, 37] = 0
    even_inputs = error(Wide(), inputs)
    x[:, 99] *= 60
    assert error(Wide(), inputs) > 4 * even_inputs
    assert error(ConvRot(Wide()), inputs) < 0.5 * error(Wide(), inputs)


@pytest.mark.parametrize("bits", INPUTS)
def test_inputs_alone_lose_what_they_lose_beside_the_weight(bits):
    rng = np.random.default_rng(13)
    weight, x = (mx.array(rng.standard_normal(shape).astype(np.float32)) for shape in ((24, 320), (2, 9, 320)))
    inside = CodedLinear.encoded(ConvRot(Wide()), weight, inputs=INPUTS[bits])(x)
    outside = CodedLinear.encoded(Wide(), weight, inputs=ConvRotInputs(INPUTS[bits]))(x)
    exact = x @ weight.T
    assert rel(outside, exact) > 1e-3
    assert rel(outside, inside) < 1e-3 * rel(outside, exact)


def test_what_is_not_finite_stays_so():
    x = np.ones((3, 64), np.float32)
    x[1, 2], x[2, 3] = np.nan, np.inf
    linear = CodedLinear.encoded(ConvRot(), mx.ones((8, 64)), inputs=Int8Inputs())
    y = np.array(linear(mx.array(x)))
    assert np.isfinite(y[0]).all()
    assert not np.isfinite(y[1:]).any()
    weight = mx.array(np.where(np.arange(128).reshape(2, 64) == 5, np.nan, 1).astype(np.float32))
    assert np.isfinite(np.array(ConvRot().decode(ConvRot().encode(weight)))).all(axis=1).tolist() == [False, True]


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="convrot: a weight of 8 x 40: 40 channels, expected a multiple of 16"):
        CodedLinear.encoded(ConvRot(), mx.ones((8, 40)))
    with pytest.raises(InputError, match="convrot: a weight of 8 x 48: 48 channels, expected a multiple of 64"):
        CodedLinear.encoded(ConvRot(Int4()), mx.ones((8, 48)))
    with pytest.raises(InputError, match=r"convrot\.group is 128, expected one of 256, 64, 16"):
        ConvRot(group=128)
    with pytest.raises(InputError, match=r"convrot_inputs\.group is 8, expected one of 256, 64, 16"):
        ConvRotInputs(group=8)
    with pytest.raises(InputError, match="inputs in convrot: 40 channels, expected a multiple of 16"):
        CodedLinear.encoded(Wide(), mx.ones((8, 40)), inputs=ConvRotInputs())
