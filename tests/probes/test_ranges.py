"""The range catalogue: the MLX route and the NumPy route give the same numbers."""

import math

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.instrument.arrays import to_numpy
from precision_lab.numerics.formats import FORMATS
from precision_lab.numerics.statistics import summarize
from precision_lab.probes import ranges
from precision_lab.probes.ranges import DEFAULT_FORMATS, RangeCatalogue

SMALL = 2.0**-120  # products of subnormals are flushed by some back ends: stay clear of them here


def tensors():
    rng = np.random.default_rng(5)
    wide = rng.standard_normal((7, 33)) * np.exp2(rng.integers(-30, 30, (7, 33)))
    holes = wide.copy()
    holes[0, :3] = np.nan, np.inf, -np.inf
    return {
        "normal": rng.standard_normal((2, 5, 64)),
        "wide": wide,
        "holes": holes,
        "zeros": np.zeros((3, 4)),
        "signed zeros": np.array([[-0.0, 0.0, 1.0]]),
        "all nan": np.full((2, 2), np.nan),
        "all inf": np.full((2, 2), -np.inf),
        "equal": np.full((4, 4), 3.0),
        "huge": np.array([[3e38, -3e38, 3e38]]),
        "tiny": np.array([[SMALL, -SMALL, 0.0]]),
        "fp16 thresholds": np.array([[65504.0, 65519.0, 65520.0, 2.0**-24, 2.0**-25, 2.0**-26]]),
        "e4m3 thresholds": np.array([[448.0, 464.0, 465.0, 2.0**-9, 2.0**-10]]),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 4)),
    }


@pytest.mark.parametrize("name", tensors())
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_both_routes_agree(name, dtype):
    if name == "tiny" and dtype == mx.float16:
        pytest.skip("zero in float16")
    x = mx.array(tensors()[name].astype(np.float32)).astype(dtype)
    formats = [FORMATS[f] for f in DEFAULT_FORMATS]
    expected = summarize(to_numpy(x), formats)
    lazy = ranges._summarize_in_ops(x, formats)
    got = {key: value.item() if isinstance(value, mx.array) else value for key, value in lazy.items()}
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        if key.startswith("num_"):
            assert got[key] == value, key
        elif math.isnan(value):
            assert math.isnan(got[key]), key
        else:
            assert got[key] == pytest.approx(value, rel=2e-6, abs=2e-6 * abs(expected["amax"])), key


def test_to_numpy_keeps_every_bfloat16_pattern():
    bits = np.arange(65536, dtype=np.uint16)
    x = mx.array(bits).view(mx.bfloat16)
    assert np.array_equal(to_numpy(x).view(np.uint16), bits)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_to_numpy_of_any_layout(dtype):
    x = mx.arange(120).reshape(2, 3, 4, 5).astype(dtype)
    for view in (x.transpose(3, 1, 0, 2), x[:, 1:, ::2], x[..., ::-1], x[1], x[0, 0, 0, 3], x[:, :0]):
        assert np.array_equal(to_numpy(view).astype(np.float32), np.array(view.astype(mx.float32)))


def test_unknown_format():
    with pytest.raises(InputError, match="float16"):
        RangeCatalogue(sites=("**",), formats=("flaot16",))
