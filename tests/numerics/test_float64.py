"""Operations in float64, checked by hand and by identities, and `own_error` on planted errors."""

import math

import ml_dtypes
import numpy as np
import pytest

from precision_lab.numerics import float64
from precision_lab.numerics.formats import FORMATS, round_to

F32 = np.float32


def test_linear_and_elementwise_by_hand():
    x, weight = np.array([[1, 2]], F32), np.array([[3, 4], [5, 6]], F32)
    assert float64.linear(x, weight).tolist() == [[11, 17]]
    assert float64.linear(x, weight, np.array([1, -1], F32)).tolist() == [[12, 16]]
    row = np.array([[[1, 2]]], F32)
    two, three = np.array([[2, 2]], F32), np.array([[3, 3]], F32)
    assert float64.modulate(row, two, three).tolist() == [[[6, 10]]]
    assert float64.gated_add(row, two, np.array([[[3, 4]]], F32)).tolist() == [[[7, 10]]]


def test_sums_beyond_the_precision_of_float32():
    x, weight = np.array([[1e8, 1, -1e8]], F32), np.ones((1, 3), F32)
    assert float64.linear(x, weight).item() == 1
    assert float64.gated_add(np.full((1, 1, 1), 2e7, F32), np.ones((1, 1), F32), np.full((1, 1, 1), 0.25, F32)) == (
        2e7 + 0.25
    )


def test_norms_by_hand():
    x = np.array([[3.0, -3.0, 3.0, -3.0]], F32)
    assert float64.layer_norm(x, 0) == pytest.approx(np.sign(x))
    assert float64.rms_norm(x, np.full(4, 2, F32), 0) == pytest.approx(2 * np.sign(x))
    massive = np.array([[4e7, 1, 2, 3]], F32)
    normed = float64.layer_norm(massive, 1e-6)
    assert normed.mean() == pytest.approx(0, abs=1e-15)
    assert np.square(normed).mean() == pytest.approx(1)
    assert float64.layer_norm(np.ones((1, 4), F32), 1e-6).tolist() == [[0, 0, 0, 0]]


def test_gelu_and_silu():
    x = np.linspace(-20, 20, 401, dtype=F32)
    y = x.astype(np.float64)
    inner = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
    direct = 0.5 * y * (1 + np.tanh(inner))
    assert float64.gelu_tanh(x) == pytest.approx(direct, abs=1e-14)
    # in the tail the direct form cancels; the value is x exp(2 t) up to a relative exp(2 t)
    tail = float64.gelu_tanh(np.array([-6.0], F32))[0]
    at = math.sqrt(2 / math.pi) * (-6 + 0.044715 * -216)
    assert tail == pytest.approx(-6 * math.exp(2 * at), rel=1e-12)
    assert float64.silu(np.array([0, -1000, 1000, math.log(3)])) == pytest.approx([0, 0, 1000, 0.75 * math.log(3)])


def test_rotation_keeps_the_modulus_and_adds_angles():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 6))
    angles = rng.uniform(0, 6, (3, 3))
    turn = np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(3, 6)
    once = float64.rotate(x, turn)
    assert np.hypot(once[..., ::2], once[..., 1::2]) == pytest.approx(np.hypot(x[..., ::2], x[..., 1::2]))
    double = np.stack([np.cos(2 * angles), np.sin(2 * angles)], axis=-1).reshape(3, 6)
    assert float64.rotate(once, turn) == pytest.approx(float64.rotate(x, double))
    quarter = float64.rotate(np.array([1.0, 2.0]).reshape(1, 1, 1, 2), np.array([[0.0, 1.0]]))
    assert quarter.ravel().tolist() == [-2, 1]


def test_averages_of_squares_and_frames_by_hand():
    x = np.arange(16.0).reshape(1, 2, 4, 2)  # two squares side by side; the channels of each sum to 20, 24, 36 and 40
    assert float64.average_down(x, 2, 2, 1).tolist() == [[[[5, 6], [9, 10]]]]
    assert float64.average_down(x, 1, 2, 1).tolist() == [[[[5.5], [9.5]]]]
    assert float64.average_down(x, 4, 2, 1).tolist() == [[[[1, 9, 2, 10], [5, 13, 6, 14]]]]  # by row of a square
    assert float64.average_down(x, 4, 2, 2).tolist() == [[[[0, 5, 0, 6], [0, 9, 0, 10]]]]  # the first frame is zero
    assert float64.average_down(x, 1, 1, 1).ravel().tolist() == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5]


def test_attention_by_hand():
    q = np.zeros((1, 1, 1, 4))
    k = np.random.default_rng(0).standard_normal((1, 3, 1, 4))
    v = np.arange(12.0).reshape(1, 3, 1, 4)
    assert float64.attention(q, k, v).ravel() == pytest.approx([4, 5, 6, 7])  # equal scores: the mean
    mask = np.array([True, False, True]).reshape(1, 1, 1, 3)
    assert float64.attention(q, k, v, mask).ravel() == pytest.approx([4, 5, 6, 7])
    mask = np.array([False, False, True]).reshape(1, 1, 1, 3)
    assert float64.attention(q, k, v, mask).ravel() == pytest.approx([8, 9, 10, 11])
    one = np.full((1, 1, 1, 4), 2 * math.log(3) / 4)  # score of a key of ones: 4 * this / sqrt(4)
    keys = np.stack([np.ones((1, 1, 4)), np.zeros((1, 1, 4))], axis=1)
    values = np.stack([np.ones((1, 1, 4)), np.zeros((1, 1, 4))], axis=1)
    assert float64.attention(one, keys, values).ravel() == pytest.approx([0.75] * 4)


@pytest.mark.parametrize("name", FORMATS)
def test_round_to_agrees_with_a_single_cast(name):
    rng = np.random.default_rng(1)
    info = ml_dtypes.finfo(name)
    x = (rng.standard_normal(20000) * np.exp2(rng.uniform(-30, 20, 20000))).astype(F32)
    x = np.concatenate([x, np.array([info.max, info.smallest_subnormal, info.smallest_subnormal / 2, 0.0], F32)])
    with np.errstate(over="ignore"):
        expected = x.astype(info.dtype).astype(np.float64)  # from float32 it rounds once
    assert np.array_equal(round_to(x, name), expected, equal_nan=True)


def test_round_to_rounds_once():
    just_above_a_tie = 1 + 2.0**-8 + 2.0**-40  # float32 rounds it to the tie, which bfloat16 then rounds to even
    assert round_to(just_above_a_tie, "bfloat16") == 1 + 2.0**-7
    assert float(np.float32(just_above_a_tie).astype(ml_dtypes.bfloat16)) == 1
    assert round_to([65519.99, 65520.0, -np.inf], "float16").tolist() == [65504, np.inf, -np.inf]
    assert np.isnan(round_to([500.0, np.inf], "float8_e4m3fn")).all()


def test_own_error_of_planted_errors():
    exact = np.array([1.0, 1 + 2.0**-8, 2.0, 300.0])
    rounded = round_to(exact, "bfloat16")  # the second is a tie and rounds down
    error = float64.own_error(rounded, exact, "bfloat16")
    assert error["own_ulp_max"] == 0.5
    assert error["own_misrounded_pct"] == 0
    assert error["own_rel_l2"] == error["rounding_rel_l2"] == pytest.approx(2.0**-8 / np.linalg.norm(exact))
    wrong = rounded.copy()
    wrong[2] += 3 * 2.0**-6  # three ulps at 2
    error = float64.own_error(wrong, exact, "bfloat16")
    assert error["own_ulp_max"] == 3
    assert error["own_misrounded_pct"] == 25
    assert error["own_overflow"] == 0


def test_own_error_of_values_that_are_not_finite():
    exact = np.array([1e5, 6e4, 1.0])
    error = float64.own_error(np.array([np.inf, np.inf, 1.0], np.float16), exact, "float16")
    assert error["own_overflow"] == 1  # 1e5 is correctly infinite in float16
    assert error["own_misrounded_pct"] == pytest.approx(100 / 3)
    assert error["own_ulp_max"] == 0
    error = float64.own_error(np.full(2, np.nan, np.float16), np.ones(2), "float16")
    assert math.isnan(error["own_ulp_max"])
    assert math.isnan(error["own_rel_l2"])
    assert error["own_overflow"] == 2
