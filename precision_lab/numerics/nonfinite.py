"""Counts of NaN and infinities, quick for many small arrays of which nearly all are finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

_EXPONENTS: dict[np.dtype[Any], tuple[Any, int]] = {
    np.dtype(np.float32): (np.uint32, 0x7F800000),
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
}
"""The unsigned integers of the width of a dtype, and the bits of its exponent: all ones in NaN and infinity."""

_TOGETHER = 24
_PIECE = 1 << 18


def count_nonfinite(x: npt.NDArray[Any]) -> tuple[int, int]:
    """The numbers of NaN and of infinities in a real array; integers have none."""
    if _is_exact(x):
        return 0, 0
    return int(np.count_nonzero(np.isnan(x))), int(np.count_nonzero(np.isinf(x)))


def largest_magnitude(x: npt.NDArray[Any]) -> float:
    """The largest magnitude of a float32, float16 or bfloat16 array that is not empty; NaN or infinity if it holds one.

    Without the sign, the bit patterns of floating-point numbers are ordered like their magnitudes, NaN last.
    """
    unsigned, _ = _EXPONENTS[x.dtype]
    bits, sign = x.reshape(-1).view(unsigned), np.iinfo(unsigned).max >> 1
    pieces = (bits[start : start + _PIECE] for start in range(0, bits.size, _PIECE))  # that stay in the cache
    largest = max(int((piece & unsigned(sign)).max()) for piece in pieces)
    return float(np.array(largest, unsigned).view(x.dtype).astype(np.float32))


def all_finite(arrays: Sequence[npt.NDArray[Any]]) -> bool:
    """Whether no array holds NaN or an infinity.

    Some arrays of a dtype are read together: for small ones, starting a reduction takes longer than the reduction.
    """
    by_dtype: dict[np.dtype[Any], list[npt.NDArray[Any]]] = {}
    for x in arrays:
        by_dtype.setdefault(x.dtype, []).append(x)
    for dtype, alike in by_dtype.items():
        if dtype not in _EXPONENTS:
            if not all(_is_exact(x) or bool(np.isfinite(x).all()) for x in alike):
                return False
            continue
        unsigned, exponent = _EXPONENTS[dtype]
        # in pieces that stay in the cache: for large arrays one each
        for start in range(0, len(alike), _TOGETHER):
            bits = np.concatenate([x.reshape(-1).view(unsigned) for x in alike[start : start + _TOGETHER]])
            if bits.size and np.bitwise_and(bits, exponent, out=bits).max() == exponent:
                return False
    return True


def _is_exact(x: npt.NDArray[Any]) -> bool:
    return x.dtype.kind in "biu"
