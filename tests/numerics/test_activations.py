"""Which activation computed an array in 16 bits: the right one, another one, or the right one in rounded steps."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from precision_lab.numerics.activations import FUNCTIONS, rounded_in_steps, taken_for
from precision_lab.numerics.formats import round_to

RIGHT = "GELU with tanh"


def inputs(spread=1.5, size=4000, fmt="bfloat16"):
    x = round_to(np.random.default_rng(7).normal(0, spread, size), fmt)
    return x, FUNCTIONS[RIGHT](x)


@pytest.mark.parametrize("fmt", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_is_recognised_once_rounded(name, fmt):
    x, exact = inputs(fmt=fmt)
    y = round_to(FUNCTIONS[name](x), fmt)
    assert taken_for(x, y, exact, fmt, beyond=False) == ("" if name == RIGHT else name)


@pytest.mark.parametrize("spread", [1.0, 2.0, 4.0])
def test_rounding_each_step_hides_neither_the_right_function_nor_erf(spread):
    x, exact = inputs(spread)
    steps = {name: np.array(f(mx.array(x).astype(mx.bfloat16)).astype(mx.float32)) for name, f in STEPS.items()}
    assert taken_for(x, steps["tanh"], exact, "bfloat16", beyond=True) == ""
    assert rounded_in_steps(x, steps["tanh"], exact, "bfloat16")
    assert taken_for(x, steps["erf"], exact, "bfloat16", beyond=True) == "GELU with erf"


STEPS = {"tanh": nn.gelu_approx, "erf": nn.gelu}


def test_what_no_step_explains():
    x, exact = inputs()
    assert not rounded_in_steps(x, exact * 1.05, exact, "bfloat16")
    assert not rounded_in_steps(x, np.where(x > 3, np.nan, exact), exact, "bfloat16")
    assert rounded_in_steps(np.zeros(0), np.zeros(0), np.zeros(0), "bfloat16")
