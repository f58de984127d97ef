"""What-if analysis: hand-computed cases, and comparisons with the range catalogue and `compare`."""

import math

import ml_dtypes
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.numerics.formats import FORMATS
from precision_lab.numerics.group_formats import round_trip
from precision_lab.numerics.metrics import compare
from precision_lab.numerics.statistics import summarize
from precision_lab.numerics.what_if import PACK, any_format, what_if

FLOATS = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
GROUPS = ("mxfp8", "mxfp4", "nvfp4", "affine4", "affine8_g32")


def formats(*names):
    return [any_format(name) for name in names]


def arrays():
    rng = np.random.default_rng(11)
    shapes = [(2, 5, 64), (1, 64), (3, 32), (7, 33), (64,), (0, 64), (), (2 * PACK // 64, 64), (1, 3, 128)]
    random = []
    for shape in shapes:
        for dtype in (np.float32, ml_dtypes.bfloat16, np.float16):
            with np.errstate(over="ignore"):
                x = np.array(rng.standard_normal(shape) * np.exp2(rng.uniform(-20, 17, shape))).astype(dtype)
            random.append(x)
    holes = np.ones((2, 64), np.float32)
    holes[0, :3] = np.nan, np.inf, 1e-9
    return [*random, holes, np.zeros((2, 64), np.float32), holes[1:]]


def test_floating_point_percentages_match_the_range_catalogue():
    tensors = arrays()
    for x, result in zip(tensors, what_if(tensors, formats(*FLOATS)), strict=True):
        expected = summarize(x, [FORMATS[name] for name in FLOATS])
        for name in FLOATS:
            for key in (f"overflow_pct_{name}", f"underflow_pct_{name}"):
                assert result[key] == pytest.approx(expected[key], nan_ok=True), (key, x.shape)


@pytest.mark.parametrize("name", [*FLOATS, *GROUPS])
def test_sqnr_matches_the_round_trip(name):
    fmt, tensors = any_format(name), arrays()
    for x, result in zip(tensors, what_if(tensors, [fmt]), strict=True):
        y = x.astype(np.float32)
        divided = name in FLOATS or (x.ndim and x.size and x.shape[-1] % fmt.group_size == 0)
        if not divided or not np.isfinite(y).all():
            assert math.isnan(result[f"sqnr_db_{name}"])
            continue
        if name in FLOATS:
            with np.errstate(over="ignore"):
                through = y.astype(ml_dtypes.finfo(name).dtype).astype(np.float32)
        else:
            through = round_trip(y.reshape(-1, fmt.group_size), fmt)[0].reshape(y.shape)
            vanished = np.mean((through == 0) & (y != 0))
            assert result[f"underflow_pct_{name}"] == pytest.approx(100 * vanished)
        assert result[f"sqnr_db_{name}"] == pytest.approx(compare(through, y).values["sqnr_db"], nan_ok=True)


def test_a_batch_gives_the_same_as_each_array_alone():
    tensors, fmts = arrays(), formats(*FLOATS, *GROUPS)
    for x, together in zip(tensors, what_if(tensors, fmts), strict=True):
        (alone,) = what_if([x], fmts)
        assert alone.keys() == together.keys()
        for key, value in alone.items():
            assert together[key] == pytest.approx(value, nan_ok=True, rel=1e-12)


def test_by_hand():
    x = np.array([[6.0, 0.2, 0, *[3.0] * 29]], np.float32)  # 0.2 becomes 0 in e2m1, all else is exact
    (result,) = what_if([x], formats("mxfp4"))
    assert result["overflow_pct_mxfp4"] == 0
    assert result["underflow_pct_mxfp4"] == pytest.approx(100 / 32)
    assert result["sqnr_db_mxfp4"] == pytest.approx(10 * math.log10((36 + 0.04 + 29 * 9) / 0.04))


def test_unknown_names():
    with pytest.raises(InputError, match="mxfp8"):
        any_format("mxfp9")
