"""The history of a gate: its measurements in each run, as a small table to be plotted over commits."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from precision_lab.errors import InputError
from precision_lab.record.address import join_address, split_address
from precision_lab.record.files import write_text
from precision_lab.record.glob import compile_glob
from precision_lab.record.manifest import Manifest

FOLDER = Path("results") / "history"
COLUMNS = ("time", "commit", "device", "mlx", "verdict", "variant", "site", "log2_amax", "deviation_bits")


def path_of(backend: str, experiment: str) -> Path:
    """The path of the history of an experiment, under the working folder."""
    return FOLDER / backend / f"{experiment}.csv"


def rows(
    manifest: Manifest,
    verdict: str,
    now: pd.DataFrame,
    before: pd.DataFrame,
    sites: Sequence[str],
) -> list[dict[str, Any]]:
    """One row per variant and site that matches `sites`; `now` and `before` are the bands of the run and the baseline.

    `log2_amax` is the largest over the cases; `deviation_bits` is its distance from the middle of the baseline's band.
    """
    both = now.merge(before, on=["variant", "component", "site", "port"], suffixes=("", "_before"))
    environment, default = manifest.environment, manifest.layout.default
    commit = (environment.commit or "") + ("-dirty" if environment.dirty else "")
    head = (manifest.finished, commit, environment.machine, environment.mlx, verdict)
    found = []
    for row in both[both["log2_amax_max"].notna()].to_dict("records"):
        if any(_matches(pattern, row["component"], row["site"], default) for pattern in sites):
            middle = (row["log2_amax_min_before"] + row["log2_amax_max_before"]) / 2
            values = (round(row["log2_amax_max"], 4), round(row["log2_amax_max"] - middle, 4))
            name = join_address(row["component"], row["site"], row["port"])
            found.append(dict(zip(COLUMNS, (*head, row["variant"], name, *values), strict=True)))
    return found


def check(path: Path) -> None:
    """Raises InputError if the file at `path` is not a history with these columns."""
    if not path.is_file():
        return
    with path.open(newline="") as file:
        header = next(csv.reader(file), [])
    if tuple(header) != COLUMNS:
        raise InputError(
            f"{path} has the columns {','.join(header)[:80]}, expected {','.join(COLUMNS)}.\n"
            "Move it away, or keep no history: gate.history=null"
        )


def append(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Appends records to the history atomically. Raises InputError if the file at `path` is another table."""
    check(path)
    text = io.StringIO(newline="")
    if path.is_file():
        text.write(path.read_text())
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if not text.tell():
        writer.writeheader()
    writer.writerows(records)
    write_text(path, text.getvalue())


def _matches(pattern: str, component: str, site: str, default: str) -> bool:
    of, glob = split_address(pattern, default)
    return of == component and compile_glob(glob).fullmatch(site) is not None
