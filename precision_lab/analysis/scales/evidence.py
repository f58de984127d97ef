"""What `scales` leaves: tables of the choice and of the held-out cases, and scales.json, which sums them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.analysis.scales.ranges import CASE
from precision_lab.errors import InputError, first_line
from precision_lab.record.files import RESTORE, read_json, write_atomically, write_json
from precision_lab.record.layout import Layout
from precision_lab.record.run import Run

SCHEMA_VERSION = 1
FILE = "scales.json"
TABLES = ("scales", "divisors", "heldout", "margins", "variants", "failures", "unscaled")


@dataclass(frozen=True)
class Evidence:
    """The tables of the command by name, and plain values about it.

    - scales: the choice, see `choice.Choice`.
    - divisors: by what each variant divides the places that decided: variant, technique, parameter, block, `divisor`.
    - heldout: every place of every held-out case, see `heldout.measured`.
    - margins: see `heldout.by_margin`.
    - variants: in how many held-out cases each fails (`overflows` by arithmetic, `not_finite` in its run), its least
      `headroom_bits` by arithmetic and the place (`least_at`), and the columns of `drift.compared`.
    - failures: each held-out case of each variant that fails: by arithmetic, and as measured.
    - unscaled: places that do not fit, and that no technique scales; see `choice.beyond`.
    """

    about: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame] = field(repr=False)

    def write(self, folder: Path) -> None:
        """Writes the tables, then scales.json."""
        for name in TABLES:
            table = self.tables[name]
            write_atomically(folder / f"{name}.parquet", lambda file, table=table: table.to_parquet(file, index=False))  # type: ignore[misc]
        write_json(folder / FILE, {"schema_version": SCHEMA_VERSION, **self.about})

    @classmethod
    def read(cls, folder: Path) -> Evidence:
        """Raises InputError for a folder that holds none, or a file that cannot be read."""
        about = read_json(folder / FILE)
        if not isinstance(about, dict) or about.get("schema_version") != SCHEMA_VERSION:
            raise InputError(f"{folder / FILE} is not of schema_version {SCHEMA_VERSION}. {RESTORE}")
        return cls(about, {name: _table(folder / f"{name}.parquet") for name in TABLES})


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except Exception as error:  # of a damaged file, Arrow and pandas raise whatever the bytes lead to
        raise InputError(f"{path} is not a table that can be read: {first_line(error)}. {RESTORE}") from error


def failed_cases(runs: Mapping[str, Run], variant: str) -> pd.DataFrame:
    """The cases in which a variant computed a value that is not finite, with the module in which the first arose.

    Columns: set, prompt_id, seed, num_nonfinite, component, site, port, branch, step.
    """
    found = []
    place = ["component", "site", "port", "branch", "step"]
    for name, run in runs.items():
        generations = run.generations[run.generations["variant"] == variant]
        arose = run.nonfinite[run.nonfinite["variant"] == variant]
        rows = generations[[*CASE[1:], "num_nonfinite"]].merge(arose[[*CASE[1:], *place]], on=CASE[1:], how="left")
        found.append(rows[rows["site"].notna() | (rows["num_nonfinite"] > 0)].assign(set=name))
    return pd.concat(found, ignore_index=True)[[*CASE, "num_nonfinite", *place]]


def case_words(row: Any, runs: Mapping[str, Run]) -> str:
    """A case as a person would name it: its prompt, its seed and the settings in which the runs differ."""
    manifest = runs[row["set"]].manifest
    cases = [run.manifest.case for run in runs.values()]
    own = [f"{key}={value}" for key, value in manifest.case.items() if any(case.get(key) != value for case in cases)]
    return ", ".join((repr(manifest.prompts[int(row["prompt_id"])]), f"seed {int(row['seed'])}", *own))


def place_words(row: Any, layout: Layout) -> str:
    """A place and the moment: `transformer_blocks.3.attn.attend, step 2, cond`."""
    moment = [f"step {int(row['step'])}"] if pd.notna(row["step"]) else []
    branch = [str(row["branch"])] if isinstance(row["branch"], str) and row["branch"] not in ("", "-") else []
    return ", ".join((layout.address(row["component"], row["site"], row["port"]), *moment, *branch))


def number(value: Any) -> float | None:
    """A number for JSON; None for one that is missing or not finite."""
    return float(value) if value is not None and pd.notna(value) and np.isfinite(value) else None


def strict(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of a table for JSON, without what is not defined."""
    found = {str(key): value.item() if isinstance(value, np.generic) else value for key, value in row.items()}
    return {key: value for key, value in found.items() if isinstance(value, str) or number(value) is not None}


def case_sets(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """The sets of cases, for scales.json."""
    return [
        {
            "set": name,
            "prompts": list(run.manifest.prompts),
            "seeds": list(run.manifest.seeds),
            "settings": dict(run.manifest.case),
        }
        for name, run in runs.items()
    ]


def names_of(runs: Mapping[str, Run]) -> Sequence[str]:
    """The variants of the held-out runs but the reference."""
    run = next(iter(runs.values()))
    return [name for name in run.manifest.variants if name != run.reference]
