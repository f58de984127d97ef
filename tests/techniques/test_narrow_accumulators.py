"""Narrow accumulators equal those of a scalar loop bit for bit, and their effect on a sum is as expected."""

import itertools

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.techniques.narrow_accumulators import NarrowAccumulators
from precision_lab.techniques.parts.narrow_sums import DTYPES, narrow_matmul
from tests.techniques.configured import SITES
from tests.techniques.small_model import forward, rel_l2, rewritten, site, small_model

LINEARS = SITES["block_linears"]
NUMPY = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def loop_matmul(a, b, block, accumulator, block_sums):
    """One element after another; a: (M, K), b: (K, N) fp32."""
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    for i, j in np.ndindex(*out.shape):
        total = np.float32(0)
        for first in range(0, a.shape[1], block):
            part = np.float32(0)
            for k in range(first, min(first + block, a.shape[1])):
                part = part + a[i, k] * b[k, j]
            part = np.float32(NUMPY[block_sums](part))
            total = np.float32(NUMPY[accumulator](total + part))
        out[i, j] = total
    return out


def inputs(seed, dtype, whole=False):
    rng = np.random.default_rng(seed)
    draw = (lambda s: rng.integers(-9, 10, s)) if whole else rng.standard_normal
    return tuple(draw(s).astype(NUMPY[dtype]).astype(np.float32) for s in ((3, 37), (37, 4)))


@pytest.mark.parametrize(
    ("dtype", "accumulator", "block_sums"), [*itertools.product(("float16", "bfloat16"), DTYPES, DTYPES)]
)
def test_rounding_after_every_product_is_that_of_a_scalar_loop(dtype, accumulator, block_sums):
    a, b = inputs(1, dtype)
    ours = narrow_matmul(mx.array(a), mx.array(b), 1, DTYPES[accumulator], DTYPES[block_sums])
    assert np.array_equal(np.array(ours), loop_matmul(a, b, 1, accumulator, block_sums))


@pytest.mark.parametrize(("block", "accumulator"), [*itertools.product((2, 5, 16, 37, 64), ("float16", "bfloat16"))])
def test_rounding_after_blocks_is_that_of_a_scalar_loop(block, accumulator):
    """With whole numbers the sum of a block is exact in fp32 in any order."""
    a, b = inputs(2, "float16", whole=True)
    a = a * 13
    for block_sums in ("float32", accumulator):
        ours = narrow_matmul(mx.array(a), mx.array(b), block, DTYPES[accumulator], DTYPES[block_sums])
        assert np.array_equal(np.array(ours), loop_matmul(a, b, block, accumulator, block_sums))


def test_by_hand():
    """In fp16 2048 + 1 is 2048: ones added one at a time are lost, ones added two at a time are not."""
    row, column = mx.array([[2048.0, 1, 1, 1, 1, 1, 1]]), mx.ones((7, 1))
    assert narrow_matmul(row, column, 1, mx.float16).item() == 2048
    assert narrow_matmul(row[:, ::-1], column, 1, mx.float16).item() == 2054
    assert narrow_matmul(row, column, 7, mx.float16).item() == 2054
    assert narrow_matmul(row, column, 1, mx.float32, block_sums=mx.float16).item() == 2054
    assert narrow_matmul(row, column, 1, mx.float16, start=mx.array([[-2048.0]])).item() == 6


def test_an_intermediate_overflow_stays():
    row, column = mx.array([[60000.0, 60000, -60000, -60000]]), mx.ones((4, 1))
    assert np.isinf(narrow_matmul(row, column, 1, mx.float16).item())
    assert narrow_matmul(row, column, 4, mx.float16).item() == 0


@pytest.mark.parametrize("block", [1, 16, 100])
def test_with_wide_sums_it_is_the_same_function(block):
    model, technique = small_model(), NarrowAccumulators(LINEARS, block=block)
    assert technique.preserves_function
    assert technique.unrounded == NarrowAccumulators(LINEARS, accumulator="float32", block=block)
    assert rel_l2(rewritten(model, technique.unrounded), forward(model)) < 2e-6


def test_the_model_loses_more_the_narrower_and_the_more_often_it_rounds():
    model = small_model()
    plain = forward(model)

    def error(**settings):
        return rel_l2(rewritten(model, NarrowAccumulators(LINEARS, **settings)), plain)

    fp16, bf16 = error(block=16), error(accumulator="bfloat16", block=16)
    assert error(accumulator="float32", block_sums="float16", block=16) < error(block=1)
    assert error(block=64) < fp16 < error(block=1)
    assert 4 < bf16 / fp16 < 16, "three bits less"


def test_the_dtype_of_the_activations_stays():
    model = small_model()
    model.set_dtype(mx.bfloat16)
    path = "transformer_blocks.1.attn.to_q"
    linear = model.transformer_blocks[1].attn.to_q
    narrow = NarrowAccumulators(sites=(path,), accumulator="float32", block=64).rewrite(site(model, path))
    x = mx.random.normal((2, 5, 64), key=mx.random.key(3)).astype(mx.bfloat16)
    assert narrow(x).dtype == mx.bfloat16
    assert mx.array_equal(narrow(x), linear(x)), "one block in fp32 is the plain linear"


def test_other_sites_and_settings_are_refused():
    with pytest.raises(InputError, match="norm_out is AdaLayerNormContinuous, expected Linear"):
        rewritten(small_model(), NarrowAccumulators(sites=("norm_out",)))
    with pytest.raises(InputError, match="accumulator is 'fp16', expected one of float16"):
        NarrowAccumulators(LINEARS, accumulator="fp16")
    with pytest.raises(InputError, match="block is 0, expected"):
        NarrowAccumulators(LINEARS, block=0)
