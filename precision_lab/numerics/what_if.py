"""The overflow, underflow and rounding error of activations if they were stored in another format."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from precision_lab.numerics.formats import FORMATS, Format, format_named
from precision_lab.numerics.group_formats import GroupFormat, group_format, round_significand, round_trip
from precision_lab.numerics.statistics import summarize

PACK = 1 << 15
"""Elements per pack: many small arrays, or one larger array."""
_ROUNDED_BY_ADDING = 2.0**100
"""Formats with a smaller maximum use `round_significand`, which is faster than a cast and stays in float32's range."""

Array = npt.NDArray[Any]
AnyFormat = Format | GroupFormat


def any_format(name: str) -> AnyFormat:
    """A floating-point format by its ml_dtypes name, or a group format. Raises InputError for other names."""
    return format_named(name) if name in FORMATS else group_format(name)


def what_if(arrays: Sequence[Array], formats: Sequence[AnyFormat]) -> list[dict[str, float]]:
    """The losses of each array if it were stored in each format f, as one dict per array:

    - `overflow_pct_f`: percent of all elements beyond the range of f. They become infinite or NaN in a floating-point
      format, and are clipped, relative to the scale of their group, in a group format;
    - `underflow_pct_f`: percent of all elements that are not zero and become zero;
    - `sqnr_db_f`: 20 log10(|x| / |x - round trip of x|), higher is better. NaN if nothing is lost, or if a value
      overflows to infinity or NaN.

    All three are NaN for an empty array, and for a group format whose group size does not divide the last axis. For an
    array with infinities or NaN, only the percentages of floating-point formats are defined.

    arrays: real, of dtypes that fit in float32.
    """
    results: list[dict[str, float]] = [{}] * len(arrays)
    for channels, indices in _packs(arrays):
        regular, pieces = [], []
        for i in indices:
            piece = arrays[i].reshape(-1).astype(np.float32, copy=False)
            if piece.size and np.isfinite(piece).all():
                regular.append(i)
                pieces.append(piece)
            else:
                results[i] = _measure_irregular(arrays[i], formats)
        if regular:
            for i, result in zip(regular, _measure(pieces, channels, formats), strict=True):
                results[i] = result
    return results


def _packs(arrays: Sequence[Array]) -> Iterator[tuple[int, list[int]]]:
    """Yields the number of channels and the indices of arrays of the same dtype and channels, at most PACK elements.

    A larger array is a pack of its own.
    """
    by_channels_and_dtype: dict[tuple[int, str], list[int]] = defaultdict(list)
    for i, x in enumerate(arrays):
        by_channels_and_dtype[x.shape[-1] if x.ndim else 1, x.dtype.name].append(i)
    for (channels, _), indices in by_channels_and_dtype.items():
        pack: list[int] = []
        count = 0
        for i in indices:
            if pack and count + arrays[i].size > PACK:
                yield channels, pack
                pack, count = [], 0
            pack.append(i)
            count += arrays[i].size
        yield channels, pack


def _measure(pieces: Sequence[Array], channels: int, formats: Sequence[AnyFormat]) -> list[dict[str, float]]:
    """`what_if` for the arrays of one pack; pieces: (n,) float32 each, finite, n > 0 a multiple of `channels`."""
    x = np.concatenate(pieces)
    sizes = np.array([piece.size for piece in pieces])
    starts = np.cumsum(sizes) - sizes

    def percent(mask: Array) -> Array:
        """Percent of the elements of each piece for which `mask` is set."""
        return 100 * np.add.reduceat(mask.view(np.uint8), starts, dtype=np.uint32) / sizes

    magnitude = np.abs(x)
    nonzero = x != 0
    signal = np.add.reduceat(np.square(x, dtype=np.float64), starts)
    columns: dict[str, Array] = {}
    for fmt in formats:
        overflow, underflow, sqnr = _names(fmt)
        if isinstance(fmt, Format):
            y, overflows = _cast(magnitude, fmt)
            error = y - magnitude
        elif channels % fmt.group_size == 0:
            groups, clipped = round_trip(x.reshape(-1, fmt.group_size), fmt)
            y, overflows = groups.reshape(-1), clipped.reshape(-1)
            error = y - x
        else:
            columns |= dict.fromkeys((overflow, underflow, sqnr), np.full(len(sizes), math.nan))
            continue
        noise = np.add.reduceat(np.square(error, dtype=np.float64), starts)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio_db = 10 * np.log10(signal / noise)
        columns[overflow], columns[underflow] = percent(overflows), percent((y == 0) & nonzero)
        columns[sqnr] = np.where((noise > 0) & np.isfinite(noise), ratio_db, math.nan)
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _names(fmt: AnyFormat) -> tuple[str, str, str]:
    return f"overflow_pct_{fmt.name}", f"underflow_pct_{fmt.name}", f"sqnr_db_{fmt.name}"


def _cast(magnitude: Array, fmt: Format) -> tuple[Array, Array]:
    """Finite magnitudes rounded to `fmt`, infinite where they overflow, and a mask of the overflows."""
    over = magnitude >= fmt.overflow_threshold if fmt.threshold_overflows else magnitude > fmt.overflow_threshold
    if fmt.max > _ROUNDED_BY_ADDING:
        with np.errstate(over="ignore"):
            return magnitude.astype(ml_dtypes.finfo(fmt.name).dtype).astype(np.float32), over
    with np.errstate(over="ignore", invalid="ignore"):  # for magnitudes far beyond the range of fmt
        y = round_significand(magnitude, fmt.mantissa_bits, math.frexp(fmt.smallest_normal)[1] - 1)
    y[over] = np.inf
    return y, over


def _measure_irregular(x: Array, formats: Sequence[AnyFormat]) -> dict[str, float]:
    """`what_if` for an array that is empty or contains non-finite elements."""
    catalogue = summarize(x, [fmt for fmt in formats if isinstance(fmt, Format)])
    return {name: float(catalogue.get(name, math.nan)) for fmt in formats for name in _names(fmt)}
