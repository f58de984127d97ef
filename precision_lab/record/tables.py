"""Long tables on disk: part files while a run goes on, one sorted parquet file when it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.errors import InputError, first_line
from precision_lab.numerics.sketch import SKETCH_COLUMNS
from precision_lab.record.columns import ARRAY, CASE, ORDER, POSITION, VARIANT, Column, count, dtypes
from precision_lab.record.files import RESTORE, File
from precision_lab.record.scan_tables import OF_A_SCAN
from precision_lab.record.search_tables import OF_A_SEARCH
from precision_lab.record.values import checked, typed

_SEEN = (VARIANT, *CASE, *POSITION)
_WITHOUT_SIGMA = tuple(column for column in POSITION if column.name != "sigma")

LEADING: Mapping[str, Sequence[Column]] = {
    "activations": (*_SEEN, *ARRAY),
    "drift": (
        VARIANT,
        Column("reference", "string", "", "variant that the error is measured against"),
        Column(
            "mode", "string", "", "free: accumulated; teacher: local, on its inputs; base: last result, other settings"
        ),
        *CASE,
        *_WITHOUT_SIGMA,
    ),
    "generations": (
        VARIANT,
        *CASE,
        Column("what", "string", "", "what the next columns describe: the picture, or the result of the last step"),
        count("num_nonfinite", "values that are NaN or infinite, in the results of all steps and in the picture"),
        Column("is_constant", "boolean", "", "whether all pixels, or all values of the result, are equal"),
        Column("least", "float64", "", "smallest finite value"),
        Column("greatest", "float64", "", "largest finite value"),
        Column("digest", "string", "", "hash of all bits; equal digests mean equal outcomes"),
    ),
    "latency": (
        VARIANT,
        Column("round", "Int64", "", "round of timing, in which every variant is timed once"),
        Column("order", "Int64", "", "place of the variant in its round"),
        Column("what", "string", "", "what was timed: step"),
        Column("seconds", "float64", "s", "time of the step, lower is better"),
        Column("peak_memory_bytes", "Int64", "bytes", "own weights and what the step allocates, lower is better"),
    ),
}
"""The leading columns of the tables that every run has. A probe may add columns, or have a table of its own."""

# Their tolerance is far above fp32's precision, and random numbers do not compress: fp32 halves the file.
_SKETCHES = (
    VARIANT,
    Column("case", "string", "", "name of the pinned case"),
    Column("prompt", "string", "", "prompt of the case"),
    Column("seed", "Int64", "", "seed of the noise"),
    *POSITION,
    *ARRAY,
    count("num_nonfinite", "elements that are NaN or infinite"),
    Column("rms", "float32", "", "root mean square"),
    *(Column(name, "float32", "", "a projection of the array on random signs") for name in SKETCH_COLUMNS),
)
_NONFINITE = (
    *_SEEN,
    *ARRAY,
    count("num_nan", "elements that are NaN"),
    count("num_inf", "elements that are infinite"),
    Column(
        "inputs_finite",
        "boolean",
        "",
        "true: the value arose in this module, whose inputs are finite; null: the first array in which it was seen",
    ),
)
_OF_A_PROBE = _SEEN
_OWN: Mapping[str, Sequence[Column]] = {"sketches": _SKETCHES, "nonfinite": _NONFINITE, **OF_A_SCAN, **OF_A_SEARCH}

OF_A_RUN = (*LEADING, *_OWN)
"""The tables of which the lab itself decides what is in them; a probe may add columns to `activations` alone."""

_OTHERS_AFTER = {"sketches": "seed"}
"""Where columns that are not leading ones are placed, if not at the end: the own settings of a pinned case."""

# `order` counts observations of a generation, so that the first non-finite one is the first in the table.
SORT_KEYS: Mapping[str, Sequence[str]] = {
    "activations": ("variant", "prompt_id", "seed", "order"),
    "drift": ("variant", "prompt_id", "seed", "order"),
    "generations": ("variant", "prompt_id", "seed"),
    "latency": ("round", "order"),
    "sketches": ("variant", "case", "order"),
    **dict.fromkeys((*OF_A_SCAN, *OF_A_SEARCH), ()),
}
WITHOUT_ORDER = ("latency", "generations", *OF_A_SCAN, *OF_A_SEARCH)
"""Tables whose rows are no observations of a generation; one round of `latency` has an order of its own."""

_KEYS_OF_A_PROBE = ("variant", "prompt_id", "seed", "order")


def part_path(run: Path, table: str, part: str) -> Path:
    """Where the part of a table is while the run goes on."""
    return run / table / f"part-{part}.parquet"


def merged_path(run: Path, table: str) -> Path:
    """Where a table is when the run is complete."""
    return run / f"{table}.parquet"


def is_written(run: Path, table: str, part: str) -> bool:
    """Whether a part is there, by itself or merged into its table by a run that was killed at the end."""
    return part_path(run, table, part).exists() or merged_path(run, table).exists()


def write_part(run: Path, table: str, part: str, rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> None:
    """Writes rows as one part, whole or not at all."""
    part_of(table, part, rows).write(run)


def part_of(table: str, part: str, rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> File:
    """Rows as the file of one part."""
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    return _file(part_path(Path(), table, part), _typed(table, frame))


def merge(run: Path) -> None:
    """Puts the parts of each table together, sorted, and removes them.

    A table of LEADING without parts is written empty.
    """
    own = {path.parent.name for path in run.glob("*/part-*.parquet")} - LEADING.keys()
    for table in (*LEADING, *sorted(own)):
        keys = list(SORT_KEYS.get(table, _KEYS_OF_A_PROBE))
        write(run, table, read(run, table).sort_values(keys, kind="stable", ignore_index=True))


def write(run: Path, table: str, frame: pd.DataFrame) -> None:
    """Writes a whole table as it is, whole or not at all, and removes its parts."""
    _file(merged_path(Path(), table), _typed(table, frame)).write(run)
    remove_parts(run, table)


def remove_parts(run: Path, table: str) -> None:
    """Removes the parts of a table."""
    shutil.rmtree(run / table, ignore_errors=True)


def read(run: Path, table: str) -> pd.DataFrame:
    """A table of a run, finished or not; empty with its leading columns if nothing is there.

    Raises InputError for a file that cannot be read, or whose columns or values are not those of such a table.
    """
    merged = merged_path(run, table)
    if merged.exists():
        return read_part(merged, table)
    parts = [read_part(path, table) for path in parts_of(run, table)]
    parts = [part for part in parts if len(part)]
    return _typed(table, pd.concat(parts, ignore_index=True)) if parts else empty(table)


def parts_of(run: Path, table: str) -> list[Path]:
    """The parts of a table of an unfinished run."""
    return sorted((run / table).glob("part-*.parquet"))


def places(table: str) -> list[str]:
    """Names of the columns that every row of a table has, whatever was measured."""
    return [*(column.name for column in leading(table)), ORDER.name]


def empty(table: str) -> pd.DataFrame:
    """The table without rows."""
    return _typed(table, pd.DataFrame())


def leading(table: str) -> Sequence[Column]:
    """The columns that the lab itself decides; other columns follow them, and those of observations end with ORDER."""
    return {**_OWN, **LEADING}.get(table, _OF_A_PROBE)


def read_part(path: Path, table: str) -> pd.DataFrame:
    """One file of a table. Raises InputError as `read` does."""
    if not path.is_file():
        raise InputError(f"{path} is not a file, expected the table {table} of a run. {RESTORE}")
    try:
        frame = pd.read_parquet(path, page_checksum_verification=True)
    except Exception as error:  # of a damaged file, Arrow and pandas raise whatever the bytes lead to
        reason = first_line(error).removesuffix(".")
        raise InputError(f"{path} is not a table that can be read: {reason}. {RESTORE}") from error
    return checked(frame, path, table, leading(table), None if table in WITHOUT_ORDER else ORDER)


def _typed(table: str, frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with the leading columns first, in their dtypes, and the number of the observation last."""
    columns = dtypes(leading(table))
    last = {} if table in WITHOUT_ORDER else dtypes([ORDER])
    others = [name for name in frame.columns if name not in columns and name not in last]
    names = list(columns)
    at = names.index(_OTHERS_AFTER[table]) + 1 if table in _OTHERS_AFTER else len(names)
    ordered = [*names[:at], *others, *names[at:], *last]
    if list(frame.columns) != ordered:
        frame = frame.reindex(columns=ordered)
    with np.errstate(over="ignore"):  # beyond fp32 a sketch is infinite
        return typed(frame, {**columns, **last})


def _file(path: Path, frame: pd.DataFrame) -> File:
    repetitive = frame.select_dtypes(exclude="float32").columns.to_list()  # a dictionary of sketches takes more space
    settings: Mapping[str, Any] = {"use_dictionary": repetitive, "write_page_checksum": True}
    return File(path.as_posix(), frame.to_parquet(index=False, **settings))
