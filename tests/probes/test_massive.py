"""Massive channels on constructed arrays."""

import math

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.probes.massive import MassiveChannels

PROBE = MassiveChannels(("transformer_blocks.*",))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_planted_channels_are_found(dtype):
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 1, (2, 10, 64))
    x[..., 7] = -300
    x[..., 40] = 200
    x[0, 3, 40] = 400  # in one token of twenty
    found = PROBE.measure(mx.array(x).astype(dtype))
    assert found["massive_channels"] == 2
    assert (found["top_channel"], found["second_channel"]) == (40, 7)
    assert found["top_token_pct"] == 5
    assert found["top_ratio"] == pytest.approx(400, rel=0.05)


def test_plain_noise_has_none():
    x = mx.array(np.random.default_rng(1).standard_normal((1, 64, 64)))
    assert PROBE.measure(x)["massive_channels"] == 0


def test_what_has_no_channels_or_no_finite_token_gives_nothing():
    assert PROBE.measure(mx.ones(5)) == {}
    assert PROBE.measure(mx.zeros((0, 8))) == {}
    assert PROBE.measure(mx.full((2, 8), float("nan"))) == {}


def test_tokens_that_are_not_finite_are_left_out():
    x = np.ones((4, 8))
    x[:, 2] = 50
    x[1, 5] = np.inf
    found = PROBE.measure(mx.array(x))
    assert (found["top_channel"], found["top_token_pct"]) == (2, 100)
    assert math.isclose(found["top_ratio"], 50)
    assert PROBE.measure(mx.zeros((4, 8)))["massive_channels"] == 0
