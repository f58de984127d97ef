"""Converts the rows of the recorders of one generation to one data frame per table, with activations joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from precision_lab.instrument.observation import Position
from precision_lab.probes.base import ACTIVATIONS, Recorder

_PLACE = (*Position._fields, "dtype", "shape", "numel")
_Piece = tuple[npt.NDArray[np.int64], "pd.Series[Any]"]
"""Row indices of the joined table, and the values of a column in these rows."""


def frames_of(recorders: Sequence[Recorder]) -> dict[str, pd.DataFrame]:
    """Data frames by table: the probes' own tables, then activations."""
    own: dict[str, list[pd.DataFrame]] = {}
    for recorder in recorders:
        if recorder.table != ACTIVATIONS:
            own.setdefault(recorder.table, []).append(_frame(recorder))
    activations = [_frame(recorder) for recorder in recorders if recorder.table == ACTIVATIONS]
    return {
        **{table: pd.concat(frames, ignore_index=True) for table, frames in own.items()},
        ACTIVATIONS: join([frame for frame in activations if len(frame)]),
    }


def join(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Joins the rows of several probes by `order`, with one row for each array.

    If two frames have a column of the same name, the later frame's value is used.
    """
    if not frames:
        return pd.DataFrame()
    orders = np.unique(np.concatenate([frame["order"].to_numpy() for frame in frames]))
    pieces: dict[str, list[_Piece]] = {}
    settled: set[str] = set()  # columns that are complete, and equal in all frames
    for frame in frames:
        rows = np.searchsorted(orders, frame["order"].to_numpy())
        whole = np.array_equal(rows, np.arange(len(orders)))
        for name in (str(name) for name in frame if name not in settled):
            pieces[name] = [*([] if whole else pieces.get(name, [])), (rows, frame[name])]
        if whole:
            settled.update(name for name in _PLACE if name in frame)
    by_first_array = sorted(frames, key=lambda frame: frame["order"].min())
    names = dict.fromkeys(str(name) for frame in by_first_array for name in frame)
    return pd.DataFrame({name: _column(pieces[name], len(orders)) for name in names})


def _column(pieces: Sequence[_Piece], length: int) -> Any:
    """A column with the values of each piece in its rows. Later pieces override earlier ones; other rows are NaN."""
    if len(pieces) == 1 and np.array_equal(pieces[0][0], np.arange(length)):
        return pieces[0][1].array
    values = [column.to_numpy() for _, column in pieces]
    dtype = np.result_type(*values)
    missing = np.ones(length, bool)
    for rows, _ in pieces:
        missing[rows] = False
    if missing.any() and dtype.kind != "f":
        dtype = np.dtype(np.float64 if dtype.kind in "iu" else object)
    joined = np.full(length, np.nan, dtype) if missing.any() else np.empty(length, dtype)
    for (rows, _), piece in zip(pieces, values, strict=True):
        joined[rows] = piece
    return joined


def _frame(recorder: Recorder) -> pd.DataFrame:
    columns = getattr(recorder, "columns", None)
    return pd.DataFrame(recorder.rows if columns is None else columns)
