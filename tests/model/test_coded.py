"""Linears with coded weights, and the weight of any linear."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.model.coded import CodedLinear, linear_shape, linear_weight, with_weight
from precision_lab.model.codings.base import Coding
from precision_lab.model.codings.int8 import Int8, Int8Inputs
from precision_lab.model.layers import Linear
from precision_lab.model.quantized import Quantization, QuantizedLinear
from precision_lab.techniques.parts.weight_storage import parameter_storage, storage


class Even(Coding):
    """Refuses an odd number of channels."""

    name = "even"

    def unfit(self, shape):
        return f"{shape[1]} channels, expected an even number" if shape[1] % 2 else None

    def encode(self, weight):
        return {"weight": weight}

    def decode(self, arrays):
        return arrays["weight"]


@pytest.fixture(params=["plain", "affine", "nvfp4", "coded"])
def linear(request):
    rng = np.random.default_rng(7)
    plain = Linear(64, 48)
    plain.weight, plain.bias = (mx.array(rng.standard_normal(s).astype(np.float32)) for s in ((48, 64), (48,)))
    if request.param == "plain":
        return plain
    if request.param == "coded":
        return CodedLinear.encoded(Int8(), plain.weight, plain.bias)
    mode = request.param
    return QuantizedLinear.packed(plain, Quantization.checked("test", mode, tensor_scale=mode == "nvfp4"))


def test_the_weight_is_what_the_linear_multiplies_with(linear):
    eye = mx.eye(64)
    products = np.array(linear(eye) - linear.bias).T
    np.testing.assert_allclose(np.array(linear_weight(linear)), products, rtol=1e-5, atol=1e-5)
    assert linear_shape(linear) == (48, 64)


def test_another_weight_in_the_same_storage(linear):
    weight = mx.array(np.random.default_rng(8).standard_normal((48, 64)).astype(np.float32))
    changed = with_weight(linear, weight)
    assert type(changed) is type(linear)
    assert changed.bias is linear.bias
    assert storage(changed) == storage(linear)
    error = np.linalg.norm(np.array(linear_weight(changed) - weight)) / np.linalg.norm(np.array(weight))
    assert error < 0.2


def test_encoding_a_decoded_weight_changes_nothing():
    coded = CodedLinear.encoded(Int8(), mx.array(np.random.default_rng(9).standard_normal((8, 16)).astype(np.float32)))
    again = with_weight(coded, linear_weight(coded))
    np.testing.assert_array_equal(np.array(again.weight), np.array(coded.weight))


def test_results_are_in_the_dtype_of_the_input(linear):
    x = mx.array(np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32))
    assert linear(x.astype(mx.bfloat16)).dtype == mx.bfloat16


def test_a_shape_that_does_not_fit_is_refused_with_the_reason():
    with pytest.raises(InputError, match="even: a weight of 4 x 3: 3 channels, expected an even number"):
        CodedLinear.encoded(Even(), mx.ones((4, 3)))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_a_16_bit_result_is_rounded_once(dtype):
    """Product and bias are those in float64, rounded once: a half of a unit in the last place, and fp32's sums."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = mx.array(rng.standard_normal((5, 64)).astype(np.float32)).astype(dtype)
        weight, bias = (mx.array(rng.standard_normal(s).astype(np.float32)).astype(dtype) for s in ((48, 64), (48,)))
        coded = CodedLinear.encoded(Int8(), weight, bias)
        wide = [np.array(a.astype(mx.float32)).astype(np.float64) for a in (x, linear_weight(coded), bias)]
        exact = wide[0] @ wide[1].T + wide[2]
        result = np.array(coded(x).astype(mx.float32))
        rounding = {mx.bfloat16: 2.0**-8, mx.float16: 2.0**-11}[dtype]
        magnitude = np.abs(wide[0]) @ np.abs(wide[1]).T
        assert (np.abs(result - exact) <= rounding * np.abs(exact) + 1e-5 * magnitude).all()


def test_inputs_are_rounded():
    rng = np.random.default_rng(4)
    weight, x = (mx.array(rng.standard_normal(s).astype(np.float32)) for s in ((5, 32), (3, 32)))
    both, weights = (CodedLinear.encoded(Int8(), weight, inputs=inputs) for inputs in (Int8Inputs(), None))
    np.testing.assert_array_equal(np.array(both(x)), np.array(weights(Int8Inputs().rounded(x))))
    assert not np.array_equal(np.array(both(x)), np.array(weights(x)))


def test_storage_counts_codes_scales_and_bias():
    coded = CodedLinear.encoded(Int8(), mx.ones((10, 32)), mx.zeros((10,)))
    assert storage(coded) == (320, 320 * 8 + 10 * 32)
    assert parameter_storage(coded) == (330, 320 * 8 + 10 * 32 + 10 * 32)
    assert set(coded.arrays) == {"weight", "scale"}
