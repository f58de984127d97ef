"""Norms that are told apart below the rounding of their results, and ports that are right and never accused."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.numerics.norms import taken_for

DTYPES = ["float32", "bfloat16", "float16"]
KINDS = [True, False]


def inputs(dtype, variance, channels=256, rows=96, mean=0.1, seed=5):
    """Rows of different sizes, in the format, as fp32."""
    rng = np.random.default_rng(seed)
    sizes = np.sqrt(variance) * np.exp(0.3 * rng.standard_normal((1, rows, 1)))
    return in_format(sizes * (rng.standard_normal((1, rows, channels)) + mean), dtype)


def in_format(values, dtype):
    return np.array(mx.array(np.asarray(values, np.float32)).astype(getattr(mx, dtype)).astype(mx.float32))


def weight_of(centred, channels=256):
    return None if centred else in_format(1 + 0.3 * np.random.default_rng(2).standard_normal(channels), "bfloat16")


def by_mlx(x, dtype, eps, centred, weight):
    """As a program has it that computes norms in fp32."""
    a = mx.array(x).astype(getattr(mx, dtype))
    w = None if weight is None else mx.array(weight).astype(a.dtype)
    y = mx.fast.layer_norm(a, w, None, eps) if centred else mx.fast.rms_norm(a, w, eps)
    return np.array(y.astype(mx.float32))


def in_steps(x, dtype, eps, centred, weight):
    """Each operation in the dtype of x."""
    a = mx.array(x).astype(getattr(mx, dtype))
    a = a - a.mean(-1, keepdims=True) if centred else a
    y = a * mx.rsqrt((a * a).mean(-1, keepdims=True) + eps)
    return np.array((y if weight is None else y * mx.array(weight).astype(y.dtype)).astype(mx.float32))


def named(x, y, dtype, centred, weight, eps=1e-6):
    return taken_for(x, y, by_mlx(x, "float32", eps, centred, weight), dtype, eps, weight)


@pytest.mark.parametrize("centred", KINDS, ids=["layer norm", "rms norm"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("variance", "eps"), [(1e-2, 1e-5), (0.1, 1e-5), (1, 1e-4), (9, 1e-3)])
def test_another_eps_is_named(dtype, variance, eps, centred):
    x, weight = inputs(dtype, variance), weight_of(centred)
    assert named(x, by_mlx(x, dtype, eps, centred, weight), dtype, centred, weight) == f"the norm with eps {eps:g}"


@pytest.mark.parametrize("eps", [3e-4, 7e-6, 2e-9])
def test_any_eps_is_named_in_fp32(eps):
    """Of values that cannot be told apart, any."""
    x = inputs("float32", 0.01)
    name = named(x, by_mlx(x, "float32", eps, True, None), "float32", True, None)
    assert abs(float(name.removeprefix("the norm with eps ")) - eps) < 0.03 * max(eps, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_kinds_are_named(dtype):
    x, weight = inputs(dtype, 2.0, mean=0.03), weight_of(False)
    without = by_mlx(x, dtype, 1e-6, False, None)
    assert named(x, without, dtype, True, None) == "the norm without its mean subtracted"
    with_mean = by_mlx(x, dtype, 1e-6, True, weight)
    assert named(x, with_mean, dtype, False, weight) == "the norm with its mean subtracted"
    y = x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)
    unbiased = in_format(y / np.sqrt(y.var(-1, keepdims=True, ddof=1) + 1e-6), dtype)
    assert named(x, unbiased, dtype, True, None) == "the norm with the unbiased variance"


@pytest.mark.parametrize("port", [by_mlx, in_steps])
@pytest.mark.parametrize("centred", KINDS, ids=["layer norm", "rms norm"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_right_port_is_not_accused(dtype, centred, port):
    """Rows of equal size too, all of whose factors are rounded in the same direction."""
    weight = weight_of(centred)
    for seed in range(4):
        for variance in (1e-4, 0.03, 1.0, 5.0, 300.0):
            for spread in (0, 1):
                x = inputs(dtype, variance, seed=seed)
                x = x if spread else in_format(x / np.sqrt(np.mean(x * x, -1, keepdims=True) / variance), dtype)
                assert not named(x, port(x, dtype, 1e-6, centred, weight), dtype, centred, weight)


def test_a_fast_reciprocal_square_root_is_no_other_eps():
    """Two ulps of fp32 too small, in all rows."""
    for variance in (0.5, 1.0, 4.0):
        x = inputs("float32", variance)
        y = (by_mlx(x, "float32", 1e-6, True, None) * np.float32(1 - 2.0**-22)).astype(np.float32)
        assert not named(x, y, "float32", True, None)


def test_an_unknown_norm_and_undefined_values_name_nothing():
    x = inputs("float32", 0.01)
    wrong = by_mlx(x, "float32", 1e-3, True, None)
    assert not taken_for(x, wrong, np.tanh(x), "float32", 1e-6, None)
    x[0, 0, 0] = np.nan
    assert taken_for(x, wrong, by_mlx(x, "float32", 1e-6, True, None), "float32", 1e-6, None)
    assert not taken_for(x * np.nan, wrong, wrong, "float32", 1e-6, None)
    assert not taken_for(x, wrong, by_mlx(x, "float32", 1e-6, True, None), "float32", 1e-6, np.ones((x.shape[1], 1)))
    right = by_mlx(x := inputs("float32", 0.01), "float32", 1e-6, True, None)
    assert not taken_for(x, right * np.float32(1e-30), right, "float32", 1e-6, None)
    x[0, :3] = 7.0  # rows without variance
    for eps in (0.0, 1e-6):
        right = by_mlx(x, "float32", 1e-6, True, None)
        right[0, :3] = 0
        with_residue = right.copy()
        with_residue[0, :3] = 1e-4
        assert not taken_for(x, with_residue, right, "float32", eps, None)
    zeros = np.zeros((4, 8), np.float32)
    assert not taken_for(zeros, zeros, zeros, "float32", 1e-6, None)
