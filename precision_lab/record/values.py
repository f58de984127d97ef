"""The values of a table that was read from a file: every column in its dtype, and no row that a run cannot write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api import types

from precision_lab.errors import InputError
from precision_lab.record.columns import Column
from precision_lab.record.files import RESTORE

_INDICES = frozenset({"step", "block", "round", "order", "prompt_id"})
_LARGEST_INDEX = 10_000_000
"""Above any count of steps, blocks, rounds and observations of a generation."""

_NOT_NEGATIVE = frozenset(
    {"seed", "numel", "amax", "rms", "rel_l2", "amin_nonzero", "count", "peak_memory_bytes", "yardstick_seconds"}
)
_NUMBERS = _NOT_NEGATIVE | {"min", "max", "mean", "sqnr_db", "cosine", "max_abs_err", "kl", "final_share", "exponent"}
_PREFIXES = ("num_", "sketch_", "headroom_bits_", "overflow_pct_", "underflow_pct_", "sqnr_db_")
"""Columns of numbers that are not leading ones: what analysis and figures read of them."""

_NEVER_NULL = frozenset({"variant", "prompt_id", "seed", "reference", "mode", "round", "seconds", "case"})
_OF_AN_ARRAY = frozenset({"component", "site", "port"})
_MODES = ("free", "teacher", "base")


def checked(
    frame: pd.DataFrame, path: Path, table: str, leading: Sequence[Column], last: Column | None
) -> pd.DataFrame:
    """`frame` with its leading columns, and the column `last`, in their dtypes.

    Raises InputError that names the file, the column and the first wrong row.
    """
    frame = frame.reset_index(drop=True)
    names = [str(name) for name in frame.columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise _wrong(path, f"has two columns {twice!r}")
    frame.columns = pd.Index(names)
    declared = [*leading, *([] if last is None else [last])]
    missing = [column.name for column in declared if column.name not in frame]
    if missing and len(frame):
        raise InputError(f"{path} has no column {missing[0]!r}, expected a table {table} of a run")
    dtypes = {column.name: column.dtype for column in declared}
    for name in names:
        dtype = dtypes.get(name) or ("float64" if name in _NUMBERS or name.startswith(_PREFIXES) else "")
        _check_dtype(frame[name], path, name, dtype)
    frame = typed(frame, {name: dtype for name, dtype in dtypes.items() if name in frame})
    _check_rows(frame, path, table)
    return frame


def typed(frame: pd.DataFrame, dtypes: Mapping[str, str]) -> pd.DataFrame:
    """`frame` with these columns in these dtypes. Converts only what differs: `astype` makes every column anew."""
    own = frame.dtypes.astype(str)  # by name, because pandas' two dtypes of text are equal to "string"
    differing = {name: dtype for name, dtype in dtypes.items() if own[name] != dtype}
    return frame.astype(differing) if differing else frame


def _check_dtype(column: pd.Series, path: Path, name: str, dtype: str) -> None:
    """Raises InputError unless the column holds what `dtype` asks for: text, numbers or truths; "" for any of them."""
    is_text = types.is_string_dtype(column)
    if column.empty or (not is_text and (str(column.dtype) == dtype or column.isna().all())):
        return  # pandas calls an empty column text
    is_number = types.is_numeric_dtype(column) and not types.is_complex_dtype(column)
    if is_text:
        try:
            pa.array(column, from_pandas=True).validate(full=True)  # bytes that are not UTF-8 show only when used
        except (pa.ArrowException, UnicodeError) as error:
            raise _wrong(path, f"holds in column {name!r} what is not UTF-8 text") from error
    expected = {"string": "text", "": "text or numbers", "boolean": "true or false"}.get(dtype, "numbers")
    fits = {"string": is_text, "": is_text or is_number, "boolean": types.is_bool_dtype(column)}
    if not fits.get(dtype, is_number and not types.is_bool_dtype(column)):
        raise _wrong(path, f"holds {column.dtype} in column {name!r}, expected {expected}")
    if dtype == "Int64":
        values = column.to_numpy(float, na_value=0.0)
        whole = np.isfinite(values) & (np.trunc(values) == values) & (np.abs(values) < 2.0**63)
        _refuse_row(column, ~whole, path, "an integer")


def _check_rows(frame: pd.DataFrame, path: Path, table: str) -> None:
    never_null = _NEVER_NULL if table in ("latency", "generations", "nonfinite") else _NEVER_NULL | _OF_AN_ARRAY
    for name in frame.columns:
        column = frame[name]
        if name in never_null:
            _refuse_row(column, column.isna().to_numpy(bool), path, "a value")
        if name in _INDICES:
            values = column.to_numpy(float, na_value=0.0)
            _refuse_row(column, ~((values >= 0) & (values <= _LARGEST_INDEX)), path, "a count from 0")
        elif name in _NOT_NEGATIVE or name.startswith("num_"):
            _refuse_row(column, column.to_numpy(float, na_value=0.0) < 0, path, "a number of at least 0")
    if "mode" in frame:
        _refuse_row(frame["mode"], ~frame["mode"].isin(_MODES).to_numpy(bool), path, f"one of {', '.join(_MODES)}")
    if table == "latency":
        seconds = frame["seconds"] if "seconds" in frame else pd.Series(dtype=float)
        values = seconds.to_numpy(float)
        _refuse_row(seconds, ~(np.isfinite(values) & (values > 0)), path, "a time above 0")
        twice = frame.duplicated(["variant", "round", "what"]) if len(frame) else pd.Series(dtype=bool)
        _refuse_row(frame.get("round", seconds), twice.to_numpy(bool), path, "one sample of a variant in each round")


def _refuse_row(column: pd.Series, wrong: Any, path: Path, expected: str) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        value = column.iloc[int(rows[0])]
        shown = "nothing" if value is None or value is pd.NA else str(value)[:40]
        raise _wrong(path, f"holds {shown!r} in row {rows[0]} of column {column.name!r}, expected {expected}")


def _wrong(path: Path, what: str) -> InputError:
    return InputError(f"{path} {what}. {RESTORE}")
