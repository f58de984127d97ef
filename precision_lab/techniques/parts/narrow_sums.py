"""Exact emulation of matrix products whose running sum is narrower than fp32, shared by several techniques.

An engine without an fp32 accumulator adds the products of a few channels at a time (16 in the matrix instructions of
NVIDIA GPUs and of SageAttention's fp16 kernels) and rounds the running sum after each addition. Products of 16-bit
numbers are exact in fp32, and so is the rounding of an fp32 sum to the narrow dtype. All rows are computed together.
"""

from __future__ import annotations

import mlx.core as mx

from precision_lab.errors import InputError, expected

DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


def dtype_named(setting: str, name: str) -> mx.Dtype:
    """The floating-point dtype called `name`. Raises InputError for an unknown one; the message names `setting`."""
    if name not in DTYPES:
        raise InputError(f"{setting} is {name!r}, {expected(DTYPES, str(name))}")
    return DTYPES[name]


def check_block(setting: str, block: int) -> None:
    """Raises InputError unless `block` is a positive whole number; the message names `setting`."""
    if not isinstance(block, int) or isinstance(block, bool) or block < 1:
        raise InputError(f"{setting} is {block!r}, expected a whole number of at least 1")


def rounded(x: mx.array, dtype: mx.Dtype) -> mx.array:
    """fp32 x rounded to the values of `dtype`, returned as fp32; infinite beyond its range."""
    return x if dtype == mx.float32 else x.astype(dtype).astype(mx.float32)


def narrow_matmul(
    a: mx.array,
    b: mx.array,
    block: int,
    accumulator: mx.Dtype,
    block_sums: mx.Dtype = mx.float32,
    start: mx.array | None = None,
) -> mx.array:
    """`start + a @ b`, `block` channels at a time; a: (..., M, K), b: (..., K, N), result (..., M, N) in fp32.

    A block's products are summed in fp32 and the sum is rounded to `block_sums`. This is added in fp32 to the running
    sum, which begins at `start` or zero and is rounded to `accumulator`. The last block may be shorter. Overflow gives
    infinities, as it does in the engine.
    """
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    total = start
    for first in range(0, a.shape[-1], block):
        part = rounded(a[..., first : first + block] @ b[..., first : first + block, :], block_sums)
        total = rounded(part if total is None else total + part, accumulator)
    assert total is not None, "a product over no channels"
    return total
