"""The weight as it is stored."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.model.coded import CodedLinear, with_weight
from precision_lab.model.codings.int8 import Int8Inputs
from precision_lab.model.codings.wide import Wide
from precision_lab.model.layers import Linear
from precision_lab.techniques.parts.weight_storage import storage


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_only_the_inputs_are_rounded(dtype):
    rng = np.random.default_rng(1)
    plain = Linear(64, 24)
    plain.weight, plain.bias = (
        mx.array(rng.standard_normal(s).astype(np.float32)).astype(dtype) for s in ((24, 64), 24)
    )
    x = mx.array(rng.standard_normal((2, 5, 64)).astype(np.float32))
    wide, rounding = (CodedLinear.encoded(Wide(), plain.weight, plain.bias, inputs) for inputs in (None, Int8Inputs()))
    assert storage(wide) == storage(plain)
    np.testing.assert_array_equal(np.array(wide(x)), np.array(plain(x)))
    np.testing.assert_array_equal(np.array(rounding(x)), np.array(plain(Int8Inputs().rounded(x))))
    changed = with_weight(wide, mx.ones((24, 64)))
    assert storage(changed) == storage(plain)
