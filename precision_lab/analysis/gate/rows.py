"""Rows of a table as the gate sees them: where and when an array was, and those that deviate as violations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.analysis.gate.violation import Violation
from precision_lab.record.address import DEFAULT_PORT
from precision_lab.record.layout import Layout

ADDRESS = ("variant", "component", "site", "port")
UNKNOWN = "-"
"""In the place of a part of an address that a table has no column for."""

WITHOUT_COMPONENTS = Layout.of([UNKNOWN])
"""The layout of tables that have no column `component`."""


def address_record(row: Mapping[Any, Any], component: str, names: Sequence[str] = ADDRESS) -> dict[str, Any]:
    """The address of a row; an unknown variant, the component `component` and the port `out` are left out."""
    usual = _usual(component)
    return {name: row[name] for name in names if row[name] != usual.get(name)}


def address_of(record: Mapping[str, Any], component: str, names: Sequence[str] = ADDRESS) -> dict[str, str]:
    """The address that `address_record` wrote with that component."""
    return {name: str({**_usual(component), **record}[name]) for name in names}


def _usual(component: str) -> dict[str, str]:
    return {"variant": UNKNOWN, "component": component, "port": DEFAULT_PORT}


def located(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of ADDRESS, UNKNOWN where the table lacks one, branch and step, None outside of them, and order.

    One row for each of the table's, in its order, in plain NumPy types.
    """
    rows = pd.DataFrame(index=range(len(table)))
    for name in ADDRESS:
        known = name in table
        rows[name] = table[name].astype(object).where(table[name].notna(), UNKNOWN).to_numpy() if known else UNKNOWN
    branch, step = (table[name] if name in table else [None] * len(table) for name in ("branch", "step"))
    rows["branch"] = pd.Series([None if pd.isna(name) else name for name in branch], index=rows.index, dtype=object)
    rows["step"] = steps(step, rows.index)
    rows["order"] = table["order"].to_numpy(np.int64) if "order" in table else np.arange(len(table))
    return rows


def steps(values: Iterable[Any], index: pd.Index[Any]) -> pd.Series[Any]:
    """Numbers of steps as int, None outside of steps: pandas would make floats of them."""
    return pd.Series([None if pd.isna(value) else int(value) for value in values], index=index, dtype=object)


def case_labels(table: pd.DataFrame) -> np.ndarray:
    """A label of the generation of each row, for people: "prompt 0, seed 1", a case's name, or UNKNOWN."""
    if "case" in table:
        return table["case"].astype(str).to_numpy()
    if not {"prompt_id", "seed"} <= set(table):
        return np.full(len(table), UNKNOWN, dtype=object)
    return ("prompt " + table["prompt_id"].astype(str) + ", seed " + table["seed"].astype(str)).to_numpy()


def violations_of(bad: pd.DataFrame, kind: str, metric: str, layout: Layout, **further: Any) -> list[Violation]:
    """One violation an address of the deviating rows `bad`, in order of execution.

    bad: columns of ADDRESS, branch, step, order, case, `expected`, `got` (text) and `magnitude` (bits).
    further: other fields of each violation.
    """
    early = bad["component"].isin(layout.before) & bad["step"].isna()
    bad = pd.concat([bad[early], bad[~early]])  # so that the first of an address is the first that was computed
    groups = bad.groupby(list(ADDRESS), sort=False)
    counts, worst = groups.size(), groups["magnitude"].max()
    found = []
    for row in bad.drop_duplicates(list(ADDRESS)).to_dict("records"):
        address = tuple(row[name] for name in ADDRESS)
        found.append(
            Violation(
                kind=kind,
                metric=metric,
                **{name: row[name] for name in (*ADDRESS, "case", "expected", "got")},
                # pandas has NaN where some rows of a column are missing
                branch=None if pd.isna(row["branch"]) else row["branch"],
                step=None if pd.isna(row["step"]) else int(row["step"]),
                order=int(row["order"]),
                magnitude=float(worst[address]),
                count=int(counts[address]),
                shown=layout.address(row["component"], row["site"], row["port"]),
                early=row["component"] in layout.before,
                **further,
            )
        )
    return found
