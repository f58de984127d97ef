"""The range catalogue of a tensor: extremes, moments, counts, and losses in narrower formats.

Counts are exact. Magnitudes are compared as integers, as `numerics.magnitudes` describes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from precision_lab.errors import InputError
from precision_lab.numerics.formats import FORMATS, Format
from precision_lab.numerics.magnitudes import Limits, magnitude_limits

CHUNK = 1 << 16
"""Elements processed at a time: the temporaries of a chunk stay in the second-level cache."""
TOGETHER = 2 * CHUNK
"""Elements of small arrays processed at a time: for these, fewer calls save more than staying in the cache."""


def summarize(x: npt.NDArray[Any], formats: Sequence[Format]) -> dict[str, float | int]:
    """The range catalogue of `x`, a real tensor of any shape and layout.

    Over all elements: `num_nan`, `num_inf`, `num_zero`. Over the finite elements: `amax` and `amin_nonzero` (of |x|),
    `min`, `max`, `mean`, `rms`. For each format f:

    - `overflow_pct_f`: percent of all elements, finite or infinite, that overflow when cast to f; NaN does not count;
    - `underflow_pct_f`: percent of all elements that are not zero and become zero when cast to f;
    - `headroom_bits_f`: log2(f.max / amax), negative if amax is out of range.

    Undefined statistics are NaN: the percentages of an empty tensor, the range of a tensor without finite elements, and
    `amin_nonzero` and headroom if all finite elements are zero.

    float16, bfloat16, float8 and float32 are evaluated in float32; float64, integers and booleans in float64. Sums are
    float64. Raises InputError for any other dtype.
    """
    limits = magnitude_limits(tuple(formats), _working_dtype(x.dtype))
    parts = [_summarize_chunk(chunk, limits) for chunk in _chunks(x)]
    num_nan = sum(p.num_nan for p in parts)
    num_inf = sum(p.num_inf for p in parts)
    num_finite = x.size - num_nan - num_inf
    catalogue: dict[str, float | int] = dict.fromkeys(("amax", "amin_nonzero", "min", "max", "mean", "rms"), math.nan)
    catalogue |= {"num_nan": num_nan, "num_inf": num_inf, "num_zero": sum(p.num_zero for p in parts)}

    amax = max((p.amax for p in parts), default=0.0)
    if num_finite:
        catalogue |= {"amax": amax, "mean": 0.0, "rms": 0.0}
        catalogue["min"] = min(p.min for p in parts) + 0.0  # -0.0 + 0.0 is 0.0
        catalogue["max"] = max(p.max for p in parts) + 0.0
    if amax > 0:
        scale = max(p.scale for p in parts)
        mean = math.fsum(p.sum * (p.scale / scale) for p in parts) / num_finite
        mean_square = math.fsum(p.sum_squares * (p.scale / scale) ** 2 for p in parts) / num_finite
        catalogue["amin_nonzero"] = min(p.amin_nonzero for p in parts)
        catalogue["mean"] = mean * scale
        catalogue["rms"] = math.sqrt(mean_square) * scale

    for i, fmt in enumerate(formats):
        overflowing = sum(p.overflowing[i] for p in parts)
        underflowing = sum(p.underflowing[i] for p in parts)
        catalogue[f"overflow_pct_{fmt.name}"] = 100 * overflowing / x.size if x.size else math.nan
        catalogue[f"underflow_pct_{fmt.name}"] = 100 * underflowing / x.size if x.size else math.nan
        catalogue[f"headroom_bits_{fmt.name}"] = math.log2(fmt.max) - math.log2(amax) if amax > 0 else math.nan
    return catalogue


def summarize_each(arrays: Sequence[npt.NDArray[Any]], formats: Sequence[Format]) -> dict[str, npt.NDArray[Any]]:
    """`summarize` of every array as columns, with one element per array. The values are identical bit for bit.

    Columns `num_*` are int64, all others float64. Arrays of equal dtype and size are measured as the rows of one
    matrix. This is many times faster, because for a few thousand elements NumPy's call overhead dominates.
    """
    by_dtype_and_size: dict[tuple[np.dtype[Any], int], list[int]] = defaultdict(list)
    for index, x in enumerate(arrays):
        by_dtype_and_size[x.dtype, x.size].append(index)
    order: list[int] = []
    parts: list[Mapping[str, Any]] = []
    for (dtype, size), indices in by_dtype_and_size.items():
        batch_size = TOGETHER // size if _working_dtype(dtype) == np.float32 and 0 < size <= CHUNK else 1
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            if batch_size == 1:
                parts.append({name: [value] for name, value in summarize(arrays[batch[0]], formats).items()})
            else:
                flat = np.concatenate([arrays[i].reshape(-1) for i in batch])
                parts.append(_summarize_rows(flat.reshape(len(batch), size), formats))
        order += indices

    columns = {}
    for name in summarize(np.zeros(0), formats):
        columns[name] = np.zeros(len(arrays), np.int64 if name.startswith("num_") else np.float64)
        if parts:
            columns[name][order] = np.concatenate([part[name] for part in parts])
    return columns


def exponent_histogram(x: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The number of finite non-zero elements of `x` in each binade 2^e <= |x| < 2^(e+1).

    Returns `(exponents, counts)`, ascending, for all e from the smallest to the largest that occurs. Both are empty if
    no element is finite and non-zero. Raises InputError for the dtypes that `summarize` rejects.
    """
    lowest = -1074  # float64's smallest subnormal is 2^-1074
    counts = np.zeros(1024 - lowest, dtype=np.int64)
    for chunk in _chunks(x):
        if chunk.dtype == np.float32:
            biased = np.bincount((chunk.view(np.uint32) >> 23) & 255, minlength=256)
            counts[-126 - lowest : 128 - lowest] += biased[1:255]
            if not biased[0]:
                continue
            chunk = chunk[np.abs(chunk) < FORMATS["float32"].smallest_normal]  # subnormals have one exponent field
        _, exponent = np.frexp(chunk[np.isfinite(chunk) & (chunk != 0)])  # |x| = m * 2^exponent with m in [0.5, 1)
        counts += np.bincount(exponent - (1 + lowest), minlength=counts.size)
    (occupied,) = np.nonzero(counts)
    if not occupied.size:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    first, last = int(occupied[0]), int(occupied[-1])
    return np.arange(first + lowest, last + lowest + 1), counts[first : last + 1]


# --- one chunk -------------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """The statistics of one chunk. Without finite elements, `min` is infinity and `max` is -infinity."""

    num_nan: int
    num_inf: int
    num_zero: int
    overflowing: list[int]
    underflowing: list[int]
    amax: float
    amin_nonzero: float
    min: float
    max: float
    scale: float
    """A power of two: the unit of `sum` and of the square root of `sum_squares`."""
    sum: float
    sum_squares: float


def _summarize_chunk(x: npt.NDArray[Any], limits: Limits) -> _Part:
    """The statistics of one chunk `x`: (n,) float32 or float64, n > 0."""
    magnitude = x.view(limits.infinity.dtype) & limits.sign_cleared
    num_zero = x.size - _count(magnitude)
    largest = magnitude.max()
    num_nan = _count(magnitude > limits.infinity) if largest > limits.infinity else 0
    overflowing = [_count(magnitude >= t) - num_nan if largest >= t else 0 for t in limits.overflow]
    num_inf = 0
    if largest >= limits.infinity:
        finite = magnitude < limits.infinity
        x, magnitude = x[finite], magnitude[finite]
        num_inf = finite.size - x.size - num_nan
        largest = magnitude.max(initial=0)
    if largest == 0:  # no finite element, or only zeros
        none = [0] * len(overflowing)
        low, high = (0.0, 0.0) if x.size else (math.inf, -math.inf)
        return _Part(num_nan, num_inf, num_zero, overflowing, none, 0.0, math.inf, low, high, 0.0, 0.0, 0.0)

    # subtracting one wraps zero to the largest integer, so the minimum covers the non-zero magnitudes only
    magnitude -= magnitude.dtype.type(1)
    smallest = magnitude.min() + magnitude.dtype.type(1)
    underflowing = [_count(magnitude < t) if smallest <= t else 0 for t in limits.underflow]
    amax = float(largest.view(x.dtype))
    # in float64 a square could overflow; scaling by a power of two near amax is exact
    scale = math.ldexp(1.0, math.frexp(amax)[1] - 1) if x.dtype == np.float64 else 1.0
    wide = np.divide(x, scale, dtype=np.float64)
    total = float(wide.sum())
    wide *= wide
    return _Part(
        num_nan,
        num_inf,
        num_zero,
        overflowing,
        underflowing,
        amax,
        float(smallest.view(x.dtype)),
        float(x.min()),
        float(x.max()),
        scale,
        total,
        float(wide.sum()),
    )


def _summarize_rows(x: npt.NDArray[Any], formats: Sequence[Format]) -> dict[str, npt.NDArray[Any]]:
    """`summarize` of each row of `x`, as columns. x: (rows, n) of a dtype within float32, 0 < n <= CHUNK."""
    limits = magnitude_limits(tuple(formats), np.dtype(np.float32))
    n = x.shape[1]
    with np.errstate(invalid="ignore"):  # raised by rows that are not finite
        y = x.astype(np.float32, copy=False)
        low, high = y.min(axis=1), y.max(axis=1)
        wide = y.astype(np.float64)
        total = wide.sum(axis=1)
        wide *= wide
        squares = wide.sum(axis=1)

    magnitude = y.view(np.uint32) & limits.sign_cleared
    largest = magnitude.max(axis=1)
    none = np.zeros(len(x), np.int64)
    num_zero = _row_counts(magnitude == 0) if not magnitude.min() else none
    overflowing = [_row_counts(magnitude >= t) if largest.max() >= t else none for t in limits.overflow]
    magnitude -= np.uint32(1)  # wraps zero to the largest integer
    smallest = magnitude.min(axis=1) + np.uint32(1)
    underflowing = [_row_counts(magnitude < t) if smallest.min() <= t else none for t in limits.underflow]

    # `summarize` handles rows that contain infinities or NaN, and rows of zeros
    plain = (largest > 0) & (largest < limits.infinity)
    with np.errstate(invalid="ignore"):  # raised by the other rows
        amax, amin = (m.view(np.float32).astype(np.float64) for m in (largest, smallest))
    columns = {
        "amax": amax,
        "amin_nonzero": amin,
        "min": low.astype(np.float64) + 0.0,
        "max": high.astype(np.float64) + 0.0,
        "mean": total / n,
        "rms": np.sqrt(squares / n),
        "num_nan": none.copy(),
        "num_inf": none.copy(),
        "num_zero": num_zero.copy(),
    }
    log_amax = np.array(
        [math.log2(a) for a in np.where(plain, amax, 1.0).tolist()]
    )  # NumPy's log2 may differ by one ulp
    for fmt, over, under in zip(formats, overflowing, underflowing, strict=True):
        columns[f"overflow_pct_{fmt.name}"] = 100 * over / n
        columns[f"underflow_pct_{fmt.name}"] = 100 * under / n
        columns[f"headroom_bits_{fmt.name}"] = math.log2(fmt.max) - log_amax
    for i in np.flatnonzero(~plain):
        for name, value in summarize(x[i], formats).items():
            columns[name][i] = value
    return columns


def _row_counts(condition: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    return condition.sum(axis=1, dtype=np.int32).astype(np.int64)  # twice as fast as summing in int64


def _count(condition: npt.NDArray[Any]) -> int:
    return int(np.count_nonzero(condition))


# --- elements as float32 or float64 ----------------------------------------------------------------------------------


@lru_cache
def _working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """float32 or float64, whichever represents every value of `dtype` (integers beyond 2^53 are rounded)."""
    if dtype.name in FORMATS:
        return np.dtype(np.float32)
    if dtype == np.float64 or dtype.kind in "biu":
        return np.dtype(np.float64)
    raise InputError(
        f"Cannot compute statistics of a {dtype.name} tensor: expected bool, integers, float64 or {', '.join(FORMATS)}"
    )


def _chunks(x: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yields pieces (n,) of float32 or float64, n <= CHUNK, in C order, so sums do not depend on the memory layout."""
    dtype = _working_dtype(x.dtype)
    flat = x.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        chunk = flat[start : start + CHUNK]
        with np.errstate(invalid="ignore"):  # a cast of a signalling NaN
            chunk = chunk.astype(dtype, copy=False)
        yield chunk
