"""Sketches: eight numbers per tensor from which the distance between two tensors can be estimated.

A sketch of x, reshaped to a matrix (rows, cols) that keeps the last axis, is p_k = a_k^T x b_k for k = 0 .. 7, with
random signs a_k and b_k. The signs are independent, so E[p_k^2] = |x|_F^2, and p is linear in x, so the root mean
square of p_k(x) - p_k(y) estimates |x - y|_F without either tensor (Alon, Matias and Szegedy, "The space complexity of
approximating the frequency moments", 1996). With eight projections, the estimate is usually within a factor of two,
and it is exact if a single element changed.

The signs must never change, since stored sketches are compared with new ones. Projection k of an axis takes the bits of
PCG64, seeded by SeedSequence([axis, k, length]), in the order of `random_raw`, 64 per word, lowest bit first; a set bit
is +1, a clear bit -1. axis is 0 for rows and 1 for columns. NumPy guarantees that these bits are stable (NEP 19).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

NUM_PROJECTIONS = 8
SKETCH_COLUMNS = tuple(f"sketch_{k}" for k in range(NUM_PROJECTIONS))
"""The names of the projections in tables."""

_ROWS, _COLUMNS = 0, 1
_BATCH = 1 << 17
"""Elements per batch: their float64 copy stays in cache."""


class Sketch(NamedTuple):
    """projections: (8,) float64; rms: the root mean square; both in the unit of the tensor.

    Both are NaN if any element is not finite, and zero for an empty tensor.
    """

    projections: npt.NDArray[np.float64]
    rms: float
    num_nonfinite: int


def sketch(x: npt.NDArray[Any]) -> Sketch:
    """The sketch of a real tensor of any shape, evaluated in float64; magnitudes up to 1e150."""
    return sketch_each([x])[0]


def sketch_each(arrays: Sequence[npt.NDArray[Any]]) -> list[Sketch]:
    """The sketch of each array; small arrays of the same shape are batched, which is several times faster."""
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, x in enumerate(arrays):
        by_shape[matrix_shape(x.shape)].append(index)
    sketches: dict[int, Sketch] = {}
    for (rows, cols), indices in by_shape.items():
        count = max(1, _BATCH // max(1, rows * cols))
        for start in range(0, len(indices), count):
            batch = indices[start : start + count]
            sketches |= zip(batch, _sketch_batch([arrays[i].reshape(rows, cols) for i in batch]), strict=True)
    return [sketches[index] for index in range(len(arrays))]


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """The shape (rows, cols) in which a tensor is sketched: cols is its last axis, rows all others."""
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def row_signs(length: int) -> npt.NDArray[np.int8]:
    """The signs a_k for `length` rows: (8, length) int8, 1 or -1."""
    return _signs(_ROWS, length)


def column_signs(length: int) -> npt.NDArray[np.int8]:
    """The signs b_k for `length` columns: (8, length) int8, 1 or -1."""
    return _signs(_COLUMNS, length)


def deviation(
    projections: npt.ArrayLike, reference: npt.ArrayLike, reference_rms: npt.ArrayLike, numel: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Estimates |x - reference| / |reference|, the relative L2 error, from sketches of two tensors of the same shape.

    projections, reference: (..., 8); reference_rms, numel: (...), of the reference. Returns (...). The estimate is 0
    where both sketches are zero, and NaN where only the reference is zero or anything is not finite; a comparison with
    a limit must not let NaN pass.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = np.asarray(projections, np.float64) - np.asarray(reference, np.float64)
        distance = np.sqrt(np.mean(difference**2, axis=-1))
        norm = np.asarray(reference_rms, np.float64) * np.sqrt(np.asarray(numel, np.float64))
        relative = np.where(norm == 0, np.where(distance == 0, 0.0, np.nan), distance / norm)
    return np.where(np.isfinite(relative), relative, np.nan)


@lru_cache(maxsize=64)
def _signs(axis: int, length: int) -> npt.NDArray[np.int8]:
    words = -(-length // 64)
    raw = [np.random.PCG64(np.random.SeedSequence([axis, k, length])).random_raw(words) for k in range(NUM_PROJECTIONS)]
    bits = np.unpackbits(np.array(raw, "<u8").view(np.uint8), axis=1, count=length, bitorder="little")
    signs = (2 * bits.astype(np.int8) - 1).astype(np.int8)
    signs.flags.writeable = False
    return signs


def _sketch_batch(batch: Sequence[npt.NDArray[Any]]) -> list[Sketch]:
    """Sketches matrices of the same shape (rows, cols)."""
    rows, cols = batch[0].shape
    a, b = row_signs(rows).T.astype(np.float64), column_signs(cols).T.astype(np.float64)
    projections = np.zeros((len(batch), NUM_PROJECTIONS))
    squares = np.zeros(len(batch))
    step = max(1, _BATCH // max(1, len(batch) * cols))
    with np.errstate(invalid="ignore"):  # infinities of both signs, signalling NaN
        for start in range(0, rows, step):
            part = slice(start, start + step)
            wide = np.array([x[part] for x in batch], np.float64)
            projections += np.einsum("nrk,rk->nk", wide @ b, a[part])
            flat = wide.reshape(len(batch), -1)
            squares += np.vecdot(flat, flat)
    return [
        Sketch(p, math.sqrt(s / max(1, x.size)), 0) if math.isfinite(s) else _nonfinite(x)
        for x, p, s in zip(batch, projections, squares.tolist(), strict=True)
    ]


def _nonfinite(x: npt.NDArray[Any]) -> Sketch:
    return Sketch(np.full(NUM_PROJECTIONS, np.nan), math.nan, int(np.count_nonzero(~np.isfinite(x))))
