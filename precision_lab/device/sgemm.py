"""Matrix products and loops over NumPy arrays on all cores of a CPU, in pieces of fixed bounds.

A BLAS with its own threads splits each product and waits at its end for the slowest core. Here each piece is one call
on one thread, and a free thread takes the next piece, so the rest of a loop's work on a piece (widening weights,
biases, softmax) runs on all cores too, while the piece is in the cache. The result does not depend on which thread
takes a piece.
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

# from cblas.h
_ROW_MAJOR, _NO_TRANSPOSE, _TRANSPOSE = 101, 111, 112
# up to this many rows, reading the matrix takes longer than the arithmetic, and sgemm would copy it first
_FEW_ROWS = 4


def sgemm(a: Float32, b: Float32, out: Float32) -> None:
    """Writes a @ b to `out` in fp32 on the calling thread; a: (m, k), b: (k, n), out: (m, n).

    The last axis of a and out and either axis of b must be contiguous. Uses the BLAS preloaded for MLX if there is one,
    otherwise NumPy's.
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
        order = _TRANSPOSE if row_major else _NO_TRANSPOSE
        for row, result in zip(a, out, strict=True):
            vectors = (row.ctypes.data, 1, 0.0, result.ctypes.data, 1)
            by_vector(_ROW_MAJOR, order, *stored.shape, 1.0, *matrix, *vectors)
    else:
        order = _NO_TRANSPOSE if row_major else _TRANSPOSE
        sizes = (_ROW_MAJOR, _NO_TRANSPOSE, order, m, n, k)
        product(*sizes, 1.0, a.ctypes.data, _leading(a), *matrix, 0.0, out.ctypes.data, _leading(out))


def _leading(x: Float32) -> int:
    """The leading dimension: the number of elements from one row to the next."""
    assert x.strides[1] == x.itemsize or x.shape[1] == 1
    return max(x.strides[0] // x.itemsize, x.shape[1])


def cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_pieces(task: Callable[[slice], None], length: int, step: int) -> None:
    """Calls `task` with every slice of length `step` (the last may be shorter) of range(length), on all cores.

    Tasks must not write to the same memory. Floating-point warnings are suppressed. Raises the exception of a task.
    """

    def quiet(piece: slice) -> None:
        with np.errstate(all="ignore"):  # errstate is local to the thread
            task(piece)

    pieces = [slice(first, min(first + step, length)) for first in range(0, length, step)]
    if len(pieces) == 1 or cores() == 1:
        for piece in pieces:
            quiet(piece)
    else:
        list(_threads(os.getpid()).map(quiet, pieces))


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """The thread pool of one process; a forked process does not inherit threads and so needs its own."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="precision_lab")
