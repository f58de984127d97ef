"""Float8 e4m3 weights and inputs."""

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.model.codings.float8 import SCALES, Float8, Float8Inputs


def nearest_float8(x):
    return np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def drawn(shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * np.exp(rng.normal(0, 3, (*shape[:-1], 1)))).astype(np.float32)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(1, 7), (5, 64), (33, 130)])
def test_values_are_those_of_ml_dtypes(scale, shape):
    weight = drawn(shape)
    weight[0, :3] = 0, 1e-40, -1e30
    axes = {"tensor": (0, 1), "channel": (1,)}
    step = np.abs(weight).max(axes[scale], keepdims=True) / np.float32(448) if scale in axes else np.ones((1, 1), "f")
    arrays = Float8(scale).encode(mx.array(weight))
    assert arrays["weight"].dtype == mx.uint8
    np.testing.assert_array_equal(np.array(arrays["scale"]), step)
    np.testing.assert_array_equal(np.array(Float8(scale).decode(arrays)), nearest_float8(weight / step) * step)


@pytest.mark.parametrize("scale", SCALES)
def test_the_product_is_that_of_the_decoded_weight(scale):
    weight, x = drawn((6, 64), 1), drawn((3, 5, 64), 2)
    arrays = Float8(scale).encode(mx.array(weight))
    for inputs in (None, Float8Inputs()):
        values = x if inputs is None else np.array(inputs.rounded(mx.array(x)))
        exact = values.astype(np.float64) @ np.array(Float8(scale).decode(arrays)).T
        product = np.array(Float8(scale).product(arrays, mx.array(x), inputs))
        np.testing.assert_allclose(product, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("scale", ["token", "tensor", 0.25])
def test_inputs_have_the_scale_that_is_asked_for(scale):
    x = drawn((4, 3, 64), 3)
    axes = {"token": (-1,), "tensor": None}
    step = np.abs(x).max(axes[scale], keepdims=True) / np.float32(448) if scale in axes else np.float32(scale)
    rounded = np.array(Float8Inputs(scale).rounded(mx.array(x)))
    np.testing.assert_array_equal(rounded, nearest_float8(x / step) * step)


@pytest.mark.parametrize("scale", ["token", "tensor", 1])
def test_inputs_of_zeros_stay_zero_and_what_is_not_finite_stays_so(scale):
    assert not np.array(Float8Inputs(scale).rounded(mx.zeros((2, 8)))).any()
    x = np.ones((3, 8), np.float32)
    x[1, 2], x[2, 3] = np.nan, -np.inf
    rounded = np.array(Float8Inputs(scale).rounded(mx.array(x)))
    assert not np.isfinite(rounded[~np.isfinite(x)]).any()
    assert np.isfinite(rounded[0]).all() == (scale != "tensor")


def test_scales_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match=r"float8\.scale is 'row', expected one of none, tensor, channel"):
        Float8("row")
    for scale in ("channel", 0, -1.0, float("nan"), True):
        with pytest.raises(InputError, match=r"float8_inputs\.scale is .*, expected token, tensor or a positive num"):
            Float8Inputs(scale)
