"""What if an activation were stored in another format: what would saturate, what would vanish, what would be lost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from precision_lab.numerics.formats import FORMATS, Format, format_named
from precision_lab.numerics.group_formats import GroupFormat, group_format, round_trip
from precision_lab.numerics.statistics import summarize

PACK = 1 << 15
"""Elements worked on at a time: many small arrays together, or one large one."""

Array = npt.NDArray[Any]
AnyFormat = Format | GroupFormat


def any_format(name: str) -> AnyFormat:
    """A floating-point format by its ml_dtypes name, or a group format. Raises InputError for other names."""
    return format_named(name) if name in FORMATS else group_format(name)


def what_if(arrays: Sequence[Array], formats: Sequence[AnyFormat]) -> list[dict[str, float]]:
    """For each array and each format f:

    - `overflow_pct_f`: percent of the elements beyond the end of f. A floating-point format makes them infinite or NaN;
      in a group format they are clipped, relative to the scale of their group;
    - `underflow_pct_f`: percent of all elements that are not zero and become zero;
    - `sqnr_db_f`: 20 log10(|x| / |x - round trip of x|), higher is better. NaN where nothing is lost, or a value
      overflows to infinity or NaN.

    All three are NaN for an empty array, and in a group format whose groups do not divide the last axis. Of an array
    with infinities or NaN only the percentages of floating-point formats are given.

    Arrays: real, of dtypes that float32 holds.
    """
    results: list[dict[str, float]] = [{}] * len(arrays)
    for channels, indices in _packs(arrays):
        chosen, pieces, values = [], [], []
        for i in indices:
            piece = arrays[i].reshape(-1)
            value = piece.astype(np.float32)
            if piece.size and np.isfinite(value).all():
                chosen.append(i)
                pieces.append(piece)
                values.append(value)
            else:
                results[i] = _of_irregular(arrays[i], formats)
        if chosen:
            for i, result in zip(chosen, _measure(pieces, np.concatenate(values), channels, formats), strict=True):
                results[i] = result
    return results


def _packs(arrays: Sequence[Array]) -> Iterator[tuple[int, list[int]]]:
    """Arrays of one dtype with as many channels, by their indices: PACK elements in all, or one larger array."""
    alike: dict[tuple[int, str], list[int]] = defaultdict(list)
    for i, x in enumerate(arrays):
        alike[x.shape[-1] if x.ndim else 1, x.dtype.name].append(i)
    for (channels, _), indices in alike.items():
        pack: list[int] = []
        count = 0
        for i in indices:
            if pack and count + arrays[i].size > PACK:
                yield channels, pack
                pack, count = [], 0
            pack.append(i)
            count += arrays[i].size
        yield channels, pack


def _measure(pieces: Sequence[Array], x: Array, channels: int, formats: Sequence[AnyFormat]) -> list[dict[str, float]]:
    """pieces: (n,) each, of one dtype, finite, n > 0 a multiple of `channels`; x: the same in one float32 array."""
    sizes = np.array([piece.size for piece in pieces])
    starts = np.cumsum(sizes) - sizes

    def percent(mask: Array) -> Array:
        """Of each piece. Most masks are nearly empty."""
        owners = np.searchsorted(starts, np.flatnonzero(mask), side="right") - 1
        return 100 * np.bincount(owners, minlength=len(sizes)) / sizes

    bits = np.concatenate(pieces).view(np.uint16) if pieces[0].dtype.itemsize == 2 else None
    nonzero = x != 0
    signal = np.add.reduceat(np.square(x, dtype=np.float64), starts)
    columns: dict[str, Array] = {}
    for fmt in formats:
        overflow, underflow, sqnr = _names(fmt)
        if isinstance(fmt, GroupFormat) and channels % fmt.group_size:
            columns |= dict.fromkeys((overflow, underflow, sqnr), np.full(len(sizes), math.nan))
            continue
        if isinstance(fmt, GroupFormat):
            y, clipped = round_trip(x.reshape(-1, fmt.group_size), fmt)
            fate = _fate(x, y.reshape(-1), clipped.reshape(-1), nonzero)
        elif bits is None:
            fate = _fate(x, *_cast(x, fmt), nonzero)
        else:
            fate = _Fate(*(table[bits] for table in _fate_of_16_bits(pieces[0].dtype, fmt)))
        with np.errstate(invalid="ignore", divide="ignore"):
            noise = np.add.reduceat(fate.square_error, starts)
            ratio_db = 10 * np.log10(signal / noise)
        columns[overflow], columns[underflow] = percent(fate.overflows), percent(fate.vanishes)
        columns[sqnr] = np.where((noise > 0) & np.isfinite(noise), ratio_db, math.nan)
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


class _Fate(NamedTuple):
    """What becomes of each element."""

    square_error: Array
    overflows: Array
    vanishes: Array


def _fate(x: Array, y: Array, overflows: Array, nonzero: Array) -> _Fate:
    with np.errstate(invalid="ignore"):  # infinities of a cast
        return _Fate(np.square(y - x, dtype=np.float64), overflows, (y == 0) & nonzero)


@lru_cache
def _fate_of_16_bits(dtype: np.dtype[Any], fmt: Format) -> _Fate:
    """Of all 65,536 values of float16 or bfloat16, by their bits: looking it up is faster than casting."""
    with np.errstate(invalid="ignore"):
        x = np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float32)
        return _fate(x, *_cast(x, fmt), x != 0)


def _names(fmt: AnyFormat) -> tuple[str, str, str]:
    return f"overflow_pct_{fmt.name}", f"underflow_pct_{fmt.name}", f"sqnr_db_{fmt.name}"


def _cast(x: Array, fmt: Format) -> tuple[Array, Array]:
    magnitude = np.abs(x)
    over = magnitude >= fmt.overflow_threshold if fmt.threshold_overflows else magnitude > fmt.overflow_threshold
    with np.errstate(over="ignore"):
        return x.astype(ml_dtypes.finfo(fmt.name).dtype).astype(np.float32), over


def _of_irregular(x: Array, formats: Sequence[AnyFormat]) -> dict[str, float]:
    """Of an array that is empty or not finite."""
    catalogue = summarize(x, [fmt for fmt in formats if isinstance(fmt, Format)])
    return {name: float(catalogue.get(name, math.nan)) for fmt in formats for name in _names(fmt)}
