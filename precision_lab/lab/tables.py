"""Long tables on disk: part files while a run goes on, one sorted parquet file when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.numerics.sketch import SKETCH_COLUMNS

_POSITION = {
    "branch": "string",
    "step": "Int64",
    "component": "string",
    "site": "string",
    "port": "string",
    "stream": "string",
    "block": "Int64",
}
_CASE = {"prompt_id": "Int64", "seed": "Int64"}
_SEEN = {
    "variant": "string",
    **_CASE,
    **{k: _POSITION[k] for k in ("branch", "step")},
    "sigma": "float64",
    **{k: _POSITION[k] for k in ("component", "site", "port", "stream", "block")},
}

# Leading columns and their types, in order; a table may have more (one for each scalar of a probe). A probe may have a
# table of its own, which a run without it lacks, and so has a run with pinned cases.
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "activations": {
        **_SEEN,
        "dtype": "string",
        "shape": "string",
        "numel": "Int64",
        "order": "Int64",
    },
    "drift": {
        "variant": "string",
        "reference": "string",
        "mode": "string",
        **_CASE,
        **_POSITION,
        "order": "Int64",
    },
    "latency": {
        "variant": "string",
        "round": "Int64",
        "order": "Int64",
        "what": "string",
        "seconds": "float64",
        "peak_memory_bytes": "Int64",
    },
}
_OF_A_PROBE: Mapping[str, str] = {**_SEEN, "order": "Int64"}
# Their tolerance is far above fp32's precision, and random numbers do not compress: fp32 halves the file.
_SKETCHES: Mapping[str, str] = {
    "variant": "string",
    "case": "string",
    "prompt": "string",
    **dict.fromkeys(("seed", "height", "width"), "Int64"),
    **{k: t for k, t in _SEEN.items() if k not in ("variant", *_CASE)},
    "dtype": "string",
    "shape": "string",
    "numel": "Int64",
    "num_nonfinite": "Int64",
    "rms": "float32",
    **dict.fromkeys(SKETCH_COLUMNS, "float32"),
    "order": "Int64",
}
_OWN: Mapping[str, Mapping[str, str]] = {"sketches": _SKETCHES}

# `order` counts observations of a generation, so that the first non-finite one is the first in the table.
SORT_KEYS: Mapping[str, Sequence[str]] = {
    "activations": ("variant", "prompt_id", "seed", "order"),
    "drift": ("variant", "prompt_id", "seed", "order"),
    "latency": ("round", "order"),
    "sketches": ("variant", "case", "order"),
}
_KEYS_OF_A_PROBE = ("variant", "prompt_id", "seed", "order")


def part_path(run: Path, table: str, part: str) -> Path:
    """Where the part called `part` of a table stands while the run goes on."""
    return run / table / f"part-{part}.parquet"


def write_part(run: Path, table: str, part: str, rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> None:
    """Writes rows as one part, whole or not at all."""
    path = part_path(run, table, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    _write(_typed(table, frame), path)


def merge(run: Path) -> None:
    """Puts the parts of each table together, sorted, and removes them.

    A table of COLUMNS without parts is written empty.
    """
    own = {path.parent.name for path in run.glob("*/part-*.parquet")} - COLUMNS.keys()
    for table in (*COLUMNS, *sorted(own)):
        frame = read(run, table)
        keys = list(SORT_KEYS.get(table, _KEYS_OF_A_PROBE))
        _write(frame.sort_values(keys, kind="stable", ignore_index=True), run / f"{table}.parquet")
        shutil.rmtree(run / table, ignore_errors=True)


def read(run: Path, table: str) -> pd.DataFrame:
    """A table of a run, finished or not; empty with its leading columns if nothing is there."""
    merged = run / f"{table}.parquet"
    if merged.is_file():
        return pd.read_parquet(merged)
    parts = [pd.read_parquet(path) for path in sorted((run / table).glob("part-*.parquet"))]
    parts = [part for part in parts if len(part)]
    return _typed(table, pd.concat(parts, ignore_index=True) if parts else pd.DataFrame())


def _typed(table: str, frame: pd.DataFrame) -> pd.DataFrame:
    columns = {**_OWN, **COLUMNS}.get(table, _OF_A_PROBE)
    others = [c for c in frame.columns if c not in columns]
    last = ["order"] if table != "latency" else []
    frame = frame.reindex(columns=[*(c for c in columns if c not in last), *others, *last])
    with np.errstate(over="ignore"):  # beyond fp32 a sketch is infinite
        return frame.astype(dict(columns))


def _write(frame: pd.DataFrame, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    repetitive = frame.select_dtypes(exclude="float32").columns.to_list()  # a dictionary of sketches takes more space
    frame.to_parquet(temporary, index=False, use_dictionary=repetitive)
    os.replace(temporary, path)
