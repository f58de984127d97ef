"""Sketches: a tensor in eight numbers that still tell how far it is from another.

A sketch of x, seen as a matrix (rows, cols) whose last axis is that of the tensor, is p_k = a_k^T x b_k for
k = 0 .. 7, with random signs a_k and b_k. The signs are independent, so E[p_k^2] = |x|_F^2, and p is linear in x: the
root mean square of p_k(x) - p_k(y) estimates |x - y|_F although neither tensor is kept (Alon, Matias and Szegedy, "The
space complexity of approximating the frequency moments", 1996). With eight projections the estimate is within a factor
of two of the truth as a rule, and a change of one element is seen exactly.

The signs are fixed for ever, since sketches of different years are compared: projection k of an axis of some length
takes the bits of PCG64, seeded by SeedSequence([axis, k, length]), as `random_raw` gives them, 64 a word, lowest bit
first; a set bit is +1, a clear one -1. axis is 0 for rows and 1 for columns. NumPy keeps that stream stable (NEP 19).
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
"""Elements worked on at a time: their float64 copy stays in cache."""


class Sketch(NamedTuple):
    """projections: (8,) float64, in the unit of the tensor; rms: of the same unit.

    Where an element is not finite, both are NaN. An empty tensor has zeros.
    """

    projections: npt.NDArray[np.float64]
    rms: float
    num_nonfinite: int


def sketch(x: npt.NDArray[Any]) -> Sketch:
    """The sketch of a real tensor of any shape, evaluated in float64; magnitudes up to 1e150."""
    return sketch_each([x])[0]


def sketch_each(arrays: Sequence[npt.NDArray[Any]]) -> list[Sketch]:
    """The sketch of each array; small ones of one shape are worked on together, which is several times faster."""
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, x in enumerate(arrays):
        alike[matrix_shape(x.shape)].append(index)
    sketches: dict[int, Sketch] = {}
    for (rows, cols), indices in alike.items():
        count = max(1, _BATCH // max(1, rows * cols))
        for start in range(0, len(indices), count):
            batch = indices[start : start + count]
            sketches |= zip(batch, _of_one_shape([arrays[i].reshape(rows, cols) for i in batch]), strict=True)
    return [sketches[index] for index in range(len(arrays))]


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(rows, cols) of the matrix that a tensor is seen as: its last axis, and all others."""
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def row_signs(length: int) -> npt.NDArray[np.int8]:
    """The signs a_k of `length` rows: (8, length), 1 and -1."""
    return _signs(_ROWS, length)


def column_signs(length: int) -> npt.NDArray[np.int8]:
    """The signs b_k of `length` columns: (8, length), 1 and -1."""
    return _signs(_COLUMNS, length)


def deviation(
    projections: npt.ArrayLike, reference: npt.ArrayLike, reference_rms: npt.ArrayLike, numel: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Estimates of |x - reference| / |reference|, the relative L2 error, from two sketches of tensors of one shape.

    projections, reference: (..., 8); reference_rms, numel: (...), of the reference. Returns (...). 0 where both
    sketches are zero; else NaN for a reference of zeros, and wherever something is not finite: compare such that NaN
    does not pass.
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


def _of_one_shape(batch: Sequence[npt.NDArray[Any]]) -> list[Sketch]:
    """Sketches of matrices of one shape (rows, cols)."""
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
