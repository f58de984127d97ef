"""The row of integers in which a device returns the statistics of one array, and its conversion to a range catalogue.

A row contains what a single branch-free pass over the bit patterns of an array can compute: the number of magnitudes at
or above each of a few thresholds, extremes in three orders, and two sums. All counts of the catalogue are differences
of these counts. The rows of any number of arrays are converted to columns together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from precision_lab.numerics.formats import Format
from precision_lab.numerics.magnitudes import magnitude_limits

_DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
ROW_DTYPES = tuple(_DTYPES)
"""The dtypes whose bit patterns a row can describe."""


@lru_cache
def row_layout(formats: tuple[Format, ...], sums_in_double: bool) -> np.dtype[Any]:
    """The fields of a row, as in the structures of range_kernel.cu and range_kernel.metal.

    - sum, squares: the sum of the finite elements and of their squares; float64, or an unevaluated sum of two float32
      in units of `2 ** exponent` and of its square;
    - signed_max, unsigned_max, unsigned_min: extremes of the bit patterns of the finite elements, as signed
      (sign-extended) and as unsigned integers; smallest: the smallest magnitude that is not zero. Arbitrary if there is
      no such element;
    - at_least: for each of `Thresholds.steps`, the number of elements, except NaN, whose magnitude is at least that.
    """
    sums: Any = "f8" if sums_in_double else ("f4", 2)
    return np.dtype(
        [
            ("sum", sums),
            ("squares", sums),
            *((name, "u4") for name in ("num_nan", "num_inf")),
            ("signed_max", "i4"),
            *((name, "u4") for name in ("unsigned_max", "unsigned_min", "smallest")),
            ("exponent", "i4"),
            ("at_least", "u4", most_steps(formats)),
        ]
    )


def most_steps(formats: Sequence[Format]) -> int:
    """Length of `at_least`: the threshold of being non-zero, and those of overflow and survival for each format."""
    return 1 + 2 * len(formats)


class Thresholds(NamedTuple):
    """The thresholds of the counts: magnitudes, as bit patterns of one dtype."""

    infinity: int
    steps: tuple[int, ...]
    """Ascending, all finite; the first is the smallest magnitude that is not zero."""
    overflow: tuple[int | None, ...]
    """For each format, the index in `steps` of the smallest magnitude that overflows; None if only infinity does."""
    survival: tuple[int, ...]
    """For each format, the index in `steps` of the smallest magnitude that does not become zero."""


@lru_cache
def thresholds(dtype: str, formats: tuple[Format, ...]) -> Thresholds:
    """The thresholds of `formats` for a dtype of ROW_DTYPES."""
    if dtype == "float32":
        limits = magnitude_limits(formats, _DTYPES[dtype])
        infinity, overflow = int(limits.infinity), [int(t) for t in limits.overflow]
        survival = [int(t) + 1 for t in limits.underflow]
    else:
        infinity = int(np.array(np.inf, _DTYPES[dtype]).view(np.uint16))
        values = np.arange(infinity + 1, dtype=np.uint16).view(_DTYPES[dtype]).astype(np.float64)
        overflow = [
            int(np.searchsorted(values, f.overflow_threshold, "left" if f.threshold_overflows else "right"))
            for f in formats
        ]
        survival = [int(np.searchsorted(values, f.underflow_threshold, "right")) for f in formats]
    steps = sorted({1, *survival, *(t for t in overflow if t < infinity)})
    at = {step: index for index, step in enumerate(steps)}
    return Thresholds(infinity, tuple(steps), tuple(at.get(t) for t in overflow), tuple(at[t] for t in survival))


def columns_of_rows(
    rows: npt.NDArray[Any], dtypes: npt.NDArray[np.str_], sizes: npt.NDArray[np.int64], formats: Sequence[Format]
) -> dict[str, npt.NDArray[Any]]:
    """The range catalogue of arrays: the columns of `numerics.statistics.summarize_each`.

    rows: (n,) of a `row_layout`; dtypes: (n,) from ROW_DTYPES, the dtypes of the rows' bit patterns; sizes: (n,)
    numbers of elements. All columns except mean and rms equal those of `summarize` exactly.
    """
    columns: dict[str, npt.NDArray[Any]] = {}
    for dtype in np.unique(dtypes) if len(dtypes) else ROW_DTYPES[:1]:
        (chosen,) = np.nonzero(dtypes == dtype)
        for name, values in _columns_of_one_dtype(rows[chosen], str(dtype), sizes[chosen], tuple(formats)).items():
            columns.setdefault(name, np.zeros(len(rows), values.dtype))[chosen] = values
    return columns


def _columns_of_one_dtype(
    rows: npt.NDArray[Any], dtype: str, sizes: npt.NDArray[np.int64], formats: tuple[Format, ...]
) -> dict[str, npt.NDArray[Any]]:
    limits = thresholds(dtype, formats)
    num_nan, num_inf = (rows[name].astype(np.int64) for name in ("num_nan", "num_inf"))
    at_least = rows["at_least"].astype(np.int64)
    nonzero = at_least[:, 0]
    num_finite = sizes - num_nan - num_inf
    some, some_nonzero = num_finite > 0, nonzero > num_inf
    # the unsigned minimum is the lowest value if no element is negative, and the highest if all are negative
    positive, negative = rows["signed_max"] >= 0, rows["unsigned_max"] > limits.infinity
    highest = _values(np.where(positive, rows["signed_max"], rows["unsigned_min"]), dtype, some)
    lowest = _values(np.where(negative, rows["unsigned_max"], rows["unsigned_min"]), dtype, some)
    amax = np.maximum(np.abs(highest), np.abs(lowest))
    unit = np.exp2(rows["exponent"].astype(np.float64))
    count = np.maximum(num_finite, 1)
    columns = {
        "amax": amax,
        "amin_nonzero": _values(rows["smallest"], dtype, some_nonzero),
        "min": lowest,
        "max": highest,
        "mean": np.where(some, _sums(rows["sum"]) / count * unit, math.nan),
        "rms": np.where(some, np.sqrt(_sums(rows["squares"]) / count) * unit, math.nan),
        "num_nan": num_nan,
        "num_inf": num_inf,
        "num_zero": sizes - num_nan - nonzero,
    }
    share = np.where(sizes > 0, np.maximum(sizes, 1).astype(np.float64), math.nan)
    log_amax = np.array([math.log2(a) for a in np.where(some_nonzero, amax, 1.0).tolist()])  # NumPy's log2 may differ
    for f, overflow, survival in zip(formats, limits.overflow, limits.survival, strict=True):
        columns[f"overflow_pct_{f.name}"] = 100 * (num_inf if overflow is None else at_least[:, overflow]) / share
        columns[f"underflow_pct_{f.name}"] = 100 * (nonzero - at_least[:, survival]) / share
        columns[f"headroom_bits_{f.name}"] = np.where(some_nonzero, math.log2(f.max) - log_amax, math.nan)
    return columns


def _values(patterns: npt.NDArray[Any], dtype: str, there: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The values of bit patterns, with 0.0 for -0.0, and NaN where `there` is false."""
    numpy_dtype = _DTYPES[dtype]
    bits = np.where(there, patterns, 0).astype(f"u{numpy_dtype.itemsize}")
    return np.where(there, bits.view(numpy_dtype).astype(np.float64) + 0.0, math.nan)


def _sums(field: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    wide = field.astype(np.float64)
    return wide if wide.ndim == 1 else wide.sum(axis=1)
