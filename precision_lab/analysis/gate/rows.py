"""Rows of a table as the gate sees them: where and when an array was, and those that deviate as violations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.analysis.gate.violation import Violation

ADDRESS = ("variant", "component", "site", "port")
USUAL = {"variant": "-", "component": "transformer", "port": "out"}
"""What the records of a baseline leave out."""


def address_record(row: Mapping[Any, Any], names: Sequence[str] = ADDRESS) -> dict[str, Any]:
    """The address of a row, without what is USUAL."""
    return {name: row[name] for name in names if row[name] != USUAL.get(name)}


def address_of(record: Mapping[str, Any], names: Sequence[str] = ADDRESS) -> dict[str, str]:
    """The address that `address_record` wrote."""
    return {name: str({**USUAL, **record}[name]) for name in names}


def located(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of ADDRESS, "-" where the table lacks one, branch and step, None where they mean nothing, and order.

    One row for each of the table's, in its order, in plain NumPy types.
    """
    rows = pd.DataFrame(index=range(len(table)))
    for name in ADDRESS:
        rows[name] = table[name].astype(object).where(table[name].notna(), "-").to_numpy() if name in table else "-"
    branch, step = (table[name] if name in table else [None] * len(table) for name in ("branch", "step"))
    rows["branch"] = pd.Series([None if pd.isna(name) else name for name in branch], index=rows.index, dtype=object)
    rows["step"] = steps(step, rows.index)
    rows["order"] = table["order"].to_numpy(np.int64) if "order" in table else np.arange(len(table))
    return rows


def steps(values: Iterable[Any], index: pd.Index[Any]) -> pd.Series[Any]:
    """Numbers of steps as int, None where they mean nothing: pandas would make floats of them."""
    return pd.Series([None if pd.isna(value) else int(value) for value in values], index=index, dtype=object)


def case_labels(table: pd.DataFrame) -> np.ndarray:
    """What tells the generations of a table apart, for people: "prompt 0, seed 1", a case's name, or "-"."""
    if "case" in table:
        return table["case"].astype(str).to_numpy()
    if not {"prompt_id", "seed"} <= set(table):
        return np.full(len(table), "-", dtype=object)
    return ("prompt " + table["prompt_id"].astype(str) + ", seed " + table["seed"].astype(str)).to_numpy()


def violations_of(bad: pd.DataFrame, kind: str, metric: str, **told: Any) -> list[Violation]:
    """One violation an address of the deviating rows `bad`, in order of execution.

    bad: columns of ADDRESS, branch, step, order, case, `expected`, `got` (text) and `magnitude` (bits).
    """
    groups = bad.groupby(list(ADDRESS), sort=False)
    counts, worst = groups.size(), groups["magnitude"].max()
    found = []
    for row in bad.drop_duplicates(list(ADDRESS)).to_dict("records"):
        address = tuple(row[name] for name in ADDRESS)
        found.append(
            Violation(
                kind=kind,
                metric=metric,
                **{name: row[name] for name in (*ADDRESS, "branch", "case", "expected", "got")},
                step=None if row["step"] is None or pd.isna(row["step"]) else int(row["step"]),
                order=int(row["order"]),
                magnitude=float(worst[address]),
                count=int(counts[address]),
                **told,
            )
        )
    return found
