"""The probes of random numbers name generators with a fault."""

import numpy as np
import pytest

from precision_lab.device.behaviour import random_numbers as probes


def uniform(seed, shape):
    return np.random.default_rng(seed).random(shape, dtype=np.float32).astype(np.float64)


def normal(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape)


def test_right_generators():
    assert probes.keyed(uniform).answer == "determined by key and size"
    assert probes.unit_interval(uniform).answer == "in [0, 1)"
    assert probes.standard_normal(normal).answer == "normal"
    assert probes.prefix(uniform).answer == "same"
    assert probes.normal_bits(normal).answer == "others"


@pytest.mark.parametrize(
    ("draw", "answer"),
    [
        (lambda seed, shape: np.random.default_rng().random(shape), "differs from call to call"),
        (lambda seed, shape: uniform(seed + len(shape), shape), "depends on the shape"),
        (lambda seed, shape: uniform(0, shape), "ignores the key"),
    ],
)
def test_keys(draw, answer):
    assert probes.keyed(draw).answer == answer


def test_ranges_and_distributions():
    assert probes.unit_interval(lambda s, n: np.append(uniform(s, (n[0] - 1,)), 1.0)).answer == "leaves [0, 1)"
    assert probes.unit_interval(lambda s, n: 0.97 * uniform(s, n)).answer == "uneven"
    assert probes.standard_normal(lambda s, n: np.append(normal(s, (n[0] - 1,)), -np.inf)).answer == "non-finite"
    assert probes.standard_normal(lambda s, n: 1.05 * normal(s, n)).answer == "not normal"
