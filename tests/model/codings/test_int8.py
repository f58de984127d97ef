"""Signed 8-bit codes by row."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.model.codings.int8 import Int8, Int8Inputs
from tests.model.codings.kitchen import adversarial, eager, in_torch


@pytest.mark.parametrize("shape", [(1, 7), (5, 64), (33, 130)])
def test_values_are_those_of_numpy(shape):
    rng = np.random.default_rng(sum(shape))
    weight = (rng.standard_normal(shape) * np.exp(rng.normal(0, 3, (shape[0], 1)))).astype(np.float32)
    scale = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    codes = np.rint(weight / scale)
    arrays = Int8().encode(mx.array(weight))
    assert arrays["weight"].dtype == mx.int8
    np.testing.assert_array_equal(np.array(arrays["weight"]), codes)
    np.testing.assert_array_equal(np.array(Int8().decode(arrays)), codes.astype(np.float32) * scale)


def test_rows_of_zeros_stay_zero_and_nothing_finite_is_made_of_a_nan():
    x = mx.array([[0.0, 0.0], [1.0, -2.0], [float("nan"), 1.0], [float("inf"), 1.0]])
    rounded = np.array(Int8Inputs().rounded(x))
    np.testing.assert_array_equal(rounded[0], 0)
    assert np.isfinite(rounded[1]).all()
    assert not np.isfinite(rounded[2:]).any()


def test_the_product_rounds_its_inputs_where_told():
    rng = np.random.default_rng(3)
    weight, x = (mx.array(rng.standard_normal(shape).astype(np.float32)) for shape in ((6, 40), (2, 3, 40)))
    arrays = Int8().encode(weight)
    expected = np.array(Int8Inputs().rounded(x)).astype(np.float64) @ np.array(Int8().decode(arrays)).T
    np.testing.assert_allclose(np.array(Int8().product(arrays, x, Int8Inputs())), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", sorted(adversarial(np.random.default_rng(0))))
def test_codes_and_values_are_those_of_comfy_kitchen(case):
    kernels = eager("quantization")
    weight = adversarial(np.random.default_rng(1))[case]
    codes, scales = kernels.quantize_int8_rowwise(in_torch(weight))
    decoded = kernels.dequantize_int8_simple(codes, scales).numpy()
    arrays = Int8().encode(mx.array(weight))
    np.testing.assert_array_equal(np.array(arrays["weight"]), codes.numpy())
    zero = ~weight.any(axis=1, keepdims=True)  # their scale multiplies zeros
    np.testing.assert_array_equal(np.array(arrays["scale"]), np.where(zero, 1, scales.numpy()))
    np.testing.assert_array_equal(np.array(Int8().decode(arrays)), decoded)
    np.testing.assert_array_equal(np.array(Int8Inputs().rounded(mx.array(weight))), decoded)
