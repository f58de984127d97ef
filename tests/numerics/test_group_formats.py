"""Round trips through MLX's quantisation modes, checked by hand and against `mx.quantize`."""

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.numerics.group_formats import group_format, round_trip

NAMES = ("mxfp8", "mxfp4", "nvfp4", "affine2", "affine3_g32", "affine4", "affine5", "affine6_g128", "affine8")


def by_mlx(x, fmt):
    options = {"mode": fmt.mode, "bits": fmt.bits, "group_size": fmt.group_size}
    packed = mx.quantize(mx.array(x), **options)
    dtype = {} if fmt.mode == "affine" else {"dtype": mx.float32}
    return np.array(mx.dequantize(*packed, **options, **dtype))


def tensors(dtype):
    rng = np.random.default_rng(3)
    rows = np.exp2(rng.uniform(-12, 9, (64, 1)))
    x = rng.standard_normal((64, 256)) * rows * np.exp2(rng.integers(-4, 5, (64, 256)))
    x[0], x[1], x[2] = 0, 7, -3
    x[3, 5] = 3e4  # a massive value among small ones
    return x.astype(dtype).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_the_round_trip_matches_mlx(name, dtype):
    """All values agree except exact ties of e2m1, which MLX rounds towards zero on the CPU and to even on GPUs."""
    fmt, x = group_format(name), tensors(dtype)
    ours = round_trip(x.reshape(-1, fmt.group_size), fmt)[0].reshape(x.shape)
    theirs = by_mlx(x, fmt)
    differ = ours != theirs
    if fmt.mode in ("mxfp4", "nvfp4"):
        assert np.mean(differ) < 0.03
        assert np.array_equal(np.abs(x[differ]) - np.abs(theirs[differ]), np.abs(ours[differ]) - np.abs(x[differ]))
        assert (np.abs(ours[differ]) > np.abs(theirs[differ])).all()
    else:
        assert not differ.any()


def test_the_scale_of_mx_formats_is_the_smallest_power_of_two_that_saturates_nothing():
    fmt = group_format("mxfp8")
    groups = np.zeros((4, 32), np.float32)
    groups[:, 0] = 448, np.nextafter(np.float32(448), np.float32(449)), 896, 300
    values, clipped = round_trip(groups, fmt)
    assert values[:, 0].tolist() == [448, 448, 896, 288]  # 300 is nearer to 288 than to 320
    assert not clipped.any()
    small = np.full((1, 32), 1e-3, np.float32)
    small[0, 0] = 448
    assert np.count_nonzero(round_trip(small, fmt)[0]) == 32  # 2^-9 is the smallest, 2^-10 < 1e-3
    small[0, 0] = 896
    assert np.count_nonzero(round_trip(small, fmt)[0]) == 1


def test_e2m1_rounds_ties_to_even():
    values = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -5, 0.26, 0.24, 4.9, 5.1]
    expected = [0, 1, 1, 2, 2, 4, 4, 0, -1, -4, 0.5, 0, 4, 6]
    groups = np.zeros((1, 32), np.float32)
    groups[0, 0] = 6
    groups[0, 1 : 1 + len(values)] = values
    assert round_trip(groups, group_format("mxfp4"))[0][0, 1 : 1 + len(values)].tolist() == expected


def test_nvfp4_saturates_above_2688_and_loses_groups_below_its_smallest_scale():
    groups = np.zeros((3, 16), np.float32)
    groups[:, 0] = 57344, 6 * 2.0**-10, 6 * 2.0**-9
    groups[:, 1] = 1, 1e-3, 0
    values, clipped = round_trip(groups, group_format("nvfp4"))
    assert values[0].tolist()[:2] == [2688, 0]
    assert clipped.sum() == 1
    assert clipped[0, 0]
    assert not values[1].any()
    assert values[2, 0] == 6 * 2.0**-9


def test_affine_levels_contain_zero_and_the_extreme_of_larger_magnitude():
    rng = np.random.default_rng(5)
    groups = np.where(rng.random((20, 64)) < 0.2, 0, rng.normal(1, 2, (20, 64))).astype(np.float32)
    values, _ = round_trip(groups, group_format("affine4"))
    assert not values[groups == 0].any()
    end = np.abs(groups).argmax(axis=1)
    assert np.array_equal(values[np.arange(20), end], groups[np.arange(20), end])
    assert all(len(np.unique(row)) <= 16 for row in values)


def test_names():
    assert group_format("affine4_g32").group_size == 32
    assert group_format("affine8").group_size == 64
    for name in ("affine7", "affine4_g16", "mxfp6", "nvfp8"):
        with pytest.raises(InputError, match="Unknown group format"):
            group_format(name)
