"""Stochastic rounding of codes against comfy-kitchen, and its mean."""

import mlx.core as mx
import numpy as np
import pytest
import torch

from precision_lab.errors import InputError
from precision_lab.model.codings.base import Coding
from precision_lab.model.codings.float8 import Float8, stochastic_codes
from precision_lab.model.codings.int8 import Int8
from tests.spread import slow

comfy = pytest.importorskip("comfy_kitchen.backends.eager.quantization")


def test_every_float16_rounds_as_in_comfy_kitchen_with_the_same_random_numbers():
    rng = np.random.default_rng(0)
    values = np.arange(65536, dtype=np.uint16).view(np.float16)
    values = values[np.isfinite(values)].astype(np.float32)
    for _ in range(8):
        random = rng.integers(0, 256, values.shape, dtype=np.uint8)
        expected = comfy.stochastic_rounding_fp8(torch.from_numpy(values.copy()), torch.from_numpy(random))
        result = np.array(stochastic_codes(mx.array(values), mx.array(random)))
        np.testing.assert_array_equal(result, expected.view(torch.uint8).numpy())


def test_what_is_not_finite_is_not_hidden():
    codes = stochastic_codes(mx.array([np.nan, np.inf, -np.inf, 1.0]), mx.zeros(4, mx.uint8))
    assert np.isnan(np.array(mx.from_fp8(codes, mx.float32))).tolist() == [True, True, True, False]


@pytest.mark.parametrize("coding", [Float8(), slow(Float8("channel")), slow(Float8("none")), Int8()])
def test_the_mean_of_many_draws_is_the_value(coding):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((8, 32)).astype(np.float32)
    draws = np.stack(
        [np.array(coding.decode(coding.encode_stochastically(mx.array(weight), mx.random.key(i)))) for i in range(600)]
    )
    error, step = draws.mean(axis=0) - weight, np.ptp(draws, axis=0)
    seen = step > 0
    assert np.mean(seen) > 0.9
    # a binomial share of 600 draws, and values in multiples of 1/128 of a step, rounded to nearest
    assert np.sqrt(np.mean((error[seen] / step[seen]) ** 2)) < 0.5 / 600**0.5 + 1 / 256
    assert np.all(np.abs(error[~seen]) <= 0.01 * np.abs(weight[~seen]))


def test_int8_neighbours_are_those_of_comfy_kitchen():
    weight = np.random.default_rng(2).standard_normal((8, 32)).astype(np.float32)
    theirs = [
        comfy.quantize_int8_rowwise(torch.from_numpy(weight.copy()), stochastic_rounding=i + 1)[0] for i in range(40)
    ]
    ours = [Int8().encode_stochastically(mx.array(weight), mx.random.key(i))["weight"] for i in range(40)]
    theirs, ours = np.stack([codes.numpy() for codes in theirs]), np.stack([np.array(codes) for codes in ours])
    floor = np.floor(weight / (np.abs(weight).max(axis=1, keepdims=True) / 127))
    for codes in (ours, theirs):
        assert set(np.unique(codes - floor)) <= {0, 1}


def test_a_format_without_one_says_so():
    class Other(Coding):
        name = "other"

        def encode(self, weight):
            return {"weight": weight}

        def decode(self, arrays):
            return arrays["weight"]

    with pytest.raises(InputError, match="other has no stochastic rounding"):
        Other().encode_stochastically(mx.zeros((2, 2)), mx.random.key(0))
