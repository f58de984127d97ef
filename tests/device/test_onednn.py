"""Products by oneDNN: exact up to one rounding if the library exists, and its absence never breaks anything."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

from precision_lab.device import onednn

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
needs_onednn = pytest.mark.skipif(not onednn.available(), reason="no oneDNN, or a processor without bfloat16")


def normal(rng, *shape, scale=1.0, dtype=BFLOAT16):
    return (scale * rng.standard_normal(shape)).astype(dtype)


def exact(x, weight, bias):
    """The product in float64."""
    product = x.astype(np.float64) @ weight.astype(np.float64).T
    return product + (0 if bias is None else bias.astype(np.float64))


@needs_onednn
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 7, 5), (1, 256, 640), (65, 96, 130), (257, 1024, 300)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("dtype", "half_ulp"), [(BFLOAT16, 2.0**-8), (np.dtype(np.float32), 2.0**-24)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_a_product_is_rounded_once(m, k, n, biased, dtype, half_ulp, seed):
    rng = np.random.default_rng(seed)
    x, weight = normal(rng, m, k, dtype=dtype), normal(rng, n, k, scale=10.0 ** rng.integers(-6, 6), dtype=dtype)
    bias = normal(rng, n, dtype=dtype) if biased else None
    out = np.full((m, n), np.nan, dtype)
    onednn.linear(x, weight, bias, out)
    expected = exact(x, weight, bias)
    # half an ulp of the result, plus the rounding error of fp32 sums of k terms and the bias
    terms = np.abs(x.astype(np.float64)) @ np.abs(weight.astype(np.float64)).T + (0 if bias is None else np.abs(bias))
    bound = half_ulp * np.abs(expected) + (k + 1) * 2.0**-24 * terms
    assert (np.abs(out.astype(np.float64) - expected) <= bound).all()


@needs_onednn
def test_pieces_of_a_product_are_parts_of_it():
    rng = np.random.default_rng(5)
    x, weight, bias = normal(rng, 40, 128), normal(rng, 512, 128), normal(rng, 512)
    whole, pieces = (np.full((40, 512), np.nan, BFLOAT16) for _ in range(2))
    onednn.linear(x, weight, bias, whole)
    for piece in (slice(0, 192), slice(192, 448), slice(448, 512)):
        onednn.linear(x, weight[piece], bias[piece], pieces[:, piece])
    assert np.array_equal(whole, pieces)


@needs_onednn
def test_threads_do_not_disturb_each_other():
    rng = np.random.default_rng(6)
    cases = [(normal(rng, m, 64), normal(rng, n, 64)) for m, n in ((8, 96), (33, 40), (8, 96), (120, 17)) * 8]

    def multiply(case):
        out = np.empty((len(case[0]), len(case[1])), BFLOAT16)
        onednn.linear(*case, None, out)
        return out

    alone = [multiply(case) for case in cases]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(multiply, cases))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@needs_onednn
def test_nonfinite_values_propagate_and_subnormals_are_zero():
    x = np.zeros((4, 32), BFLOAT16)
    x[:, 0] = [np.nan, np.inf, 3e38, 1e-39]
    weight = np.ones((1, 32), BFLOAT16)
    weight[0, 0] = 8
    out = np.empty((4, 1), BFLOAT16)
    onednn.linear(x, weight, None, out)
    assert np.isnan(out[0, 0])
    assert out[1, 0] == np.inf
    assert out[2, 0] == np.inf
    assert out[3, 0] == 0


FAST_LINEAR = """
from precision_lab.device import blas, onednn
blas.preload()
import mlx.core as mx, numpy as np
from precision_lab.model.layers import Linear
from precision_lab.techniques.fast.cpu import replacement
mx.set_default_device(mx.cpu)
plain = Linear(512, 1024)
plain.set_dtype(mx.bfloat16)
x = mx.random.normal((1, 70, 512), key=mx.random.key(0)).astype(mx.bfloat16)
a, b = (np.array(layer(x).astype(mx.float32)) for layer in (plain, replacement(plain)))
print(onednn.available(), np.linalg.norm(a - b) <= 4e-3 * np.linalg.norm(a))
"""


@pytest.mark.parametrize("choice", ["off", None])
def test_a_fast_linear_works_with_and_without_onednn(choice):
    environment = {**os.environ, **({} if choice is None else {"PRECISION_LAB_ONEDNN": choice})}
    process = subprocess.run([sys.executable, "-c", FAST_LINEAR], capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == [str(choice is None and onednn.available()), "True"]


@needs_onednn
def test_the_calling_thread_still_computes_with_subnormals():
    ones = np.ones((16, 64), BFLOAT16)
    onednn.linear(ones, ones, None, np.empty((16, 16), BFLOAT16))
    assert (np.full(64, 1e-40, np.float32) * np.float32(0.5) > 0).all()


@needs_onednn
def test_fp32_products_keep_subnormals():
    x, weight = np.full((4, 8), 1e-40, np.float32), np.ones((3, 8), np.float32)
    out = np.zeros((4, 3), np.float32)
    onednn.linear(x, weight, None, out)
    assert np.allclose(out, 8e-40, rtol=1e-3)


@pytest.mark.parametrize("library", ["/nowhere/libdnnl.so", "libm.so.6"])
def test_a_library_that_is_named_and_cannot_be_used_is_an_error(library):
    environment = {**os.environ, "PRECISION_LAB_ONEDNN": library}
    code = "from precision_lab.device import onednn; onednn.available()"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert f"InputError: PRECISION_LAB_ONEDNN={library} " in process.stderr
