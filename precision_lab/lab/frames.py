"""What recorders collected in one generation, as data frames: one a table, those of activations joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from precision_lab.instrument.observation import Position
from precision_lab.probes.base import ACTIVATIONS, Recorder

_PLACE = (*Position._fields, "dtype", "shape", "numel")


def frames_of(recorders: Sequence[Recorder]) -> dict[str, pd.DataFrame]:
    """Frames by table: those that probes have to themselves, then activations."""
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
    """The rows of several probes in their common `order`, those of one array made one row.

    Where two have a column of the same name, the later one's value stands.
    """
    if not frames:
        return pd.DataFrame()
    orders = np.unique(np.concatenate([frame["order"].to_numpy() for frame in frames]))
    columns: dict[str, Any] = {}
    said: set[str] = set()
    """Columns of `_PLACE` that are whole: what they say of an array is the same in every frame."""
    for frame in frames:
        at = np.searchsorted(orders, frame["order"].to_numpy())
        whole = np.array_equal(at, np.arange(len(orders)))
        for name in frame.columns.difference(said, sort=False):
            columns[name] = frame[name].array if whole else _placed(frame[name], at, columns.get(name), len(orders))
        if whole:
            said.update(frame.columns.intersection(_PLACE))
    by_first_array = sorted(frames, key=lambda frame: frame["order"].min())
    return pd.DataFrame(
        {name: columns[name] for name in dict.fromkeys(str(n) for frame in by_first_array for n in frame)}
    )


def _frame(recorder: Recorder) -> pd.DataFrame:
    columns = getattr(recorder, "columns", None)
    return pd.DataFrame(recorder.rows if columns is None else columns)


def _placed(column: pd.Series, at: npt.NDArray[np.int64], before: Any, length: int) -> npt.NDArray[Any]:
    """The column's values in the rows `at`; in the others what was there before, or NaN."""
    values = column.to_numpy()
    if before is None:
        placed = np.full(length, np.nan, np.float64 if values.dtype.kind in "iuf" else object)
    else:
        placed = np.array(before)
        placed = placed.astype(np.result_type(placed, values), copy=False)
    placed[at] = values
    return placed
