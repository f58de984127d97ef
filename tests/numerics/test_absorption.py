"""Absorbed updates: hand-computed cases, and a comparison with actual rounding."""

import math

import ml_dtypes
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.numerics.absorption import absorption_pct


def share(residual, update, fmt="bfloat16"):
    return absorption_pct(np.array(residual, np.float64), np.array(update, np.float64), fmt)


@pytest.mark.parametrize(
    ("residual", "update", "absorbed"),
    [
        (1.0, 2.0**-8, True),  # half an ulp of bf16 at 1, and 1 is even
        (1.0, 2.0**-8 * 1.01, False),
        (1.0 + 2.0**-7, 2.0**-8, False),  # the same tie from an odd significand
        (1.0, -(2.0**-9), True),  # below 1 the spacing is half as large: a tie, which goes to the even 1
        (1.0, -(2.0**-9) * 1.01, False),
        (1.5, -(2.0**-8) * 0.99, True),
        (2.0**24, 65536.0, True),  # half an ulp at 16.8 M: 131,072 / 2
        (2.0**24, 65537.0, False),
        (-(2.0**24), -65536.0, True),
        (0.0, 1e-30, False),
    ],
)
def test_bfloat16_by_hand(residual, update, absorbed):
    assert share([residual], [update]) == (100.0 if absorbed else 0.0)


def test_at_the_published_size_the_ulp_is_131072():
    assert share([2e7] * 4, [65535.0, 65537.0, -65535.0, 1.0]) == 75.0


def test_zero_updates_and_non_finite_positions_do_not_count():
    assert share([1.0, np.inf, 1.0, 1.0], [0.0, 1.0, np.nan, 1.0]) == 0.0
    assert math.isnan(share([1.0], [0.0]))
    assert math.isnan(share([], []))


@pytest.mark.parametrize(("fmt", "dtype"), [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)])
@pytest.mark.parametrize("seed", range(4))
def test_absorbed_updates_are_those_that_rounding_leaves_unchanged(fmt, dtype, seed):
    rng = np.random.default_rng(seed)
    residual = (rng.standard_normal(20_000) * 10 ** rng.uniform(-2, 3, 20_000)).astype(dtype)
    update = rng.standard_normal(20_000) * np.abs(residual.astype(np.float64)) * 10 ** rng.uniform(-5, 0, 20_000)
    update = np.float64(update.astype(np.float16))  # so that the sum is exact in float64
    moved = (residual.astype(np.float64) + update).astype(np.float32).astype(dtype) != residual
    counted = update != 0
    expected = 100 * np.count_nonzero(counted & ~moved) / np.count_nonzero(counted)
    assert absorption_pct(residual, update, fmt) == pytest.approx(expected, abs=0.02)


def test_invalid_arguments_are_rejected():
    with pytest.raises(InputError, match="expected the same"):
        share([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="bfloat16"):
        share([1.0], [1.0], "bfloat15")
