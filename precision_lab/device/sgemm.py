"""Matrix products and loops over NumPy arrays on all cores of a CPU, in pieces with fixed bounds.

A multithreaded BLAS splits each product itself and then waits for the slowest core. Here each piece is one call on one
thread, and the next idle thread takes the next piece. The other work on a piece (widening weights, biases, softmax)
therefore also runs on all cores, while the piece is in the cache. The result does not depend on the thread, bit for
bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import numpy.typing as npt

from precision_lab.device import blas

Float32 = npt.NDArray[np.float32]

# CBLAS constants
_ROW_MAJOR, _NOT_TRANSPOSED, _TRANSPOSED = 101, 111, 112
# with at most this many rows, reading the matrix takes longer than the arithmetic, and sgemm would copy it first
_FEW_ROWS = 4


def sgemm(a: Float32, b: Float32, out: Float32) -> None:
    """Computes out = a @ b in fp32 on the calling thread; a: (m, k), b: (k, n), out: (m, n).

    The last axes of a and out must be contiguous, and either axis of b. Uses the BLAS that this process preloaded for
    MLX, or NumPy's BLAS without one.
    """
    (m, k), n = a.shape, b.shape[1]
    assert b.shape[0] == k
    assert out.shape == (m, n)
    product, by_vector = blas.routine("cblas_sgemm"), blas.routine("cblas_sgemv")
    if product is None or by_vector is None or 0 in (m, n, k):
        np.matmul(a, b, out=out)
        return
    row_major = b.strides[1] == b.itemsize
    stored = b if row_major else b.T
    matrix = (stored.ctypes.data, _leading(stored))
    if m <= _FEW_ROWS:
        order = _TRANSPOSED if straight else _NOT_TRANSPOSED
        for row, result in zip(a, out, strict=True):
            vectors = (row.ctypes.data, 1, 0.0, result.ctypes.data, 1)
            by_vector(_ROW_MAJOR, order, *stored.shape, 1.0, *matrix, *vectors)
    else:
        order = _NOT_TRANSPOSED if straight else _TRANSPOSED
        sizes = (_ROW_MAJOR, _NOT_TRANSPOSED, order, m, n, k)
        product(*sizes, 1.0, a.ctypes.data, _leading(a), *matrix, 0.0, out.ctypes.data, _leading(out))


def _leading(x: Float32) -> int:
    """The leading dimension of a matrix: the number of elements from one row to the next."""
    assert x.strides[1] == x.itemsize or x.shape[1] == 1
    return max(x.strides[0] // x.itemsize, x.shape[1])


def cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_pieces(task: Callable[[slice], None], length: int, step: int) -> None:
    """Runs `task` on all cores for consecutive slices of range(length), each `step` long except perhaps the last.

    NumPy's floating-point warnings are off. Tasks must write to disjoint places. An exception in a task is raised here.
    """

    def quiet(piece: slice) -> None:
        with np.errstate(all="ignore"):  # errstate is per thread
            task(piece)

    pieces = [slice(first, min(first + step, length)) for first in range(0, length, step)]
    if len(pieces) == 1 or cores() == 1:
        for piece in pieces:
            quiet(piece)
    else:
        list(_threads(os.getpid()).map(quiet, pieces))


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """The thread pool of process `process`. It is cached by process id because a fork inherits no threads."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="precision_lab")
