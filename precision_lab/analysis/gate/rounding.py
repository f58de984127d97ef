"""Rates of misrounded values: how often the result of an operation is not the exact one rounded to its dtype.

The arbiter (`precision_lab.probes.arbiter`) counts them from the actual inputs of each call, so the rate belongs to the
operation alone. It is near zero where an operation is evaluated in fp32 and rounded once, and tens of percent where it
rounds at several steps. A rounding that moves changes it; ranges and fp32 cases cannot show that.

An operation is a site without the number of its block: all blocks run the same code. Its rate is k of n values, where
the values of a case are not independent. Pearson's chi-squared over the cases that a baseline learns estimates the
dispersion phi, the factor by which the variance exceeds that of independent values, at least 1. A run is then allowed
every rate that some true rate explains together with the learned one, each with probability 1e-8: by Chernoff's bound,
P(rate >= r) <= exp(-n / phi KL(r || p)) (Hoeffding, "Probability inequalities for sums of bounded random variables",
1963), and likewise below. Beyond that, 0.2 % is allowed: so many values may lie within a few ulps of fp32 of a rounding
boundary in float16, and exponentials and sums in fp32 differ that much between machines.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.analysis.gate.rows import ADDRESS, address_of, address_record, case_labels, located, violations_of
from precision_lab.analysis.gate.violation import Findings
from precision_lab.errors import InputError
from precision_lab.record.layout import Layout

RATE = "own_misrounded_pct"
"""The column of the arbiter that is judged, in percent."""

COLUMNS = (*ADDRESS, "order", "misrounded", "values", "dispersion")
_LOG_ODDS = -math.log(1e-8)
_SLACK = 2e-3
_FEW_CASES = 3
_UNKNOWN_DISPERSION = 10.0
"""The dispersion that is assumed if fewer than three cases were learned; the micro model's operations have 1 to 10."""


def learn(activations: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """The rates of a table of activations: one row per variant and operation, with COLUMNS, in order of execution.

    Rows without a rate and rows in fp32 do not count: a sum in fp32 is misrounded wherever its order differs.
    """
    cases = _prepared(activations, layout).groupby([*ADDRESS, "case"], sort=False)
    counts = cases.agg(order=("order", "min"), misrounded=("misrounded", "sum"), values=("values", "sum")).reset_index()
    records = []
    for address, group in counts.groupby(list(ADDRESS), sort=False):
        k, n = group["misrounded"].to_numpy(float), group["values"].to_numpy(float)
        total = {"order": group["order"].min(), "misrounded": int(k.sum()), "values": int(n.sum())}
        records.append(dict(zip(ADDRESS, address, strict=True)) | total | {"dispersion": _dispersion(k, n)})
    table = pd.DataFrame(records, columns=list(COLUMNS))
    return table.sort_values(["variant", "order"], kind="stable", ignore_index=True)


def judge(learned: pd.DataFrame, activations: pd.DataFrame, layout: Layout) -> Findings:
    """One violation per operation of `learned` whose rate in `activations` is missing or outside of what is allowed."""
    rows = _prepared(activations, layout)
    groups = dict(list(rows.groupby(list(ADDRESS), sort=False))) if len(rows) else {}
    findings = Findings(checks=Counter(rounding=len(learned)))
    bad: list[dict[Hashable, Any]] = []
    for known in learned.to_dict("records"):
        address = tuple(known[name] for name in ADDRESS)
        group = groups.get(address)
        if group is None:
            nothing: dict[Hashable, Any] = {"expected": "a rate", "got": "nothing", "magnitude": math.inf}
            bad.append({**known, "branch": None, "step": None, "case": "-", **nothing})
            continue
        n = int(group["values"].sum())
        rate = group["misrounded"].sum() / n
        low, high = allowed(known["misrounded"], known["values"], known["dispersion"], n)
        if not low <= rate <= high:
            beyond = math.log2(rate / high) if rate > high else math.log2(low / rate) if rate > 0 else math.inf
            got: dict[Hashable, Any] = {"magnitude": beyond, "got": f"{100 * rate:.3g}"}
            got["expected"] = f"{100 * low:.3g} to {100 * high:.3g}"
            bad.append({**group.iloc[0].to_dict(), **got})
    if bad:
        findings.violations += violations_of(pd.DataFrame(bad), "rounding", "misrounded_pct", layout)
    return findings


def allowed(misrounded: int, values: int, dispersion: float, n: int) -> tuple[float, float]:
    """The least and the largest rate of `n` values that agree with `misrounded` of `values`; see the module."""
    learned, most = misrounded / values, _LOG_ODDS * dispersion
    true = [_furthest(lambda p: _divergence(learned, p), learned, end, most / values) for end in (0.0, 1.0)]
    least, largest = (
        _furthest(lambda r, p=p: _divergence(r, p), p, end, most / n)  # type: ignore[misc]
        for p, end in zip(true, (0.0, 1.0), strict=True)
    )
    return max(0.0, least - _SLACK), min(1.0, largest + _SLACK)


def _furthest(divergence: Callable[[float], float], start: float, end: float, limit: float) -> float:
    """The rate furthest from `start` towards `end` at which the divergence is within the limit, by bisection."""
    if divergence(end) <= limit:
        return end
    inside, outside = start, end
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if divergence(middle) <= limit else (inside, middle)
    return inside


def _divergence(r: float, p: float) -> float:
    """KL(r || p) of two Bernoulli distributions, in nats."""
    terms = ((r, p), (1 - r, 1 - p))
    return sum(a * math.log(a / b) if b else math.inf for a, b in terms if a)


def _dispersion(k: np.ndarray, n: np.ndarray) -> float:
    if len(k) < _FEW_CASES:
        return _UNKNOWN_DISPERSION
    p = k.sum() / n.sum()
    expected = n * p * (1 - p)
    return max(1.0, float(np.sum((k - n * p) ** 2 / expected) / (len(k) - 1))) if 0 < p < 1 else 1.0


def _prepared(activations: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """The rows with a rate in 16 bits, in order of execution, with the operation as their site, and counts."""
    if RATE not in activations:
        return pd.DataFrame(columns=[*ADDRESS, "branch", "step", "order", "case", "misrounded", "values"])
    measured = activations[
        activations[RATE].notna().to_numpy(bool) & (activations["dtype"] != "float32").to_numpy(bool)
    ]
    rows = located(measured)
    rows["case"] = case_labels(measured)
    operations = {
        (component, site): operation(layout, component, site)
        for component, site in rows[["component", "site"]].drop_duplicates().itertuples(index=False)
    }
    rows["site"] = [operations[key] for key in zip(rows["component"], rows["site"], strict=True)]
    rows["values"] = measured["numel"].to_numpy(np.int64)
    rows["misrounded"] = np.rint(measured[RATE].to_numpy(float) / 100 * rows["values"]).astype(np.int64)
    return rows[rows["values"] > 0].sort_values("order", kind="stable", ignore_index=True)


def operation(layout: Layout, component: str, site: str) -> str:
    """The pattern of a site in every block: `transformer_blocks.7.img_add1` becomes `transformer_blocks.*.img_add1`."""
    block = layout.block_of(component, site)
    if block is None:
        return site
    segments = site.split(".")
    for index, segment in enumerate(segments):
        if segment == str(block) and layout.block_of(component, ".".join(segments[: index + 1])) == block:
            return ".".join([*segments[:index], "*", *segments[index + 1 :]])
    return site


def to_records(learned: pd.DataFrame, component: str) -> list[dict[str, Any]]:
    """Strict JSON, one short record an operation, without the component `component` and the port `out`."""
    return [
        address_record(row, component)
        | {name: int(row[name]) for name in ("order", "misrounded", "values")}
        | {"dispersion": round(row["dispersion"], 2)}
        for row in learned.to_dict("records")
    ]


def from_records(records: Sequence[Mapping[str, Any]], component: str) -> pd.DataFrame:
    """The table that `to_records` wrote. Raises InputError for records of another form."""
    rows = []
    for record in records:
        try:
            counts = {name: int(record[name]) for name in ("order", "misrounded", "values")}
            dispersion = float(record["dispersion"])
            if not (0 <= counts["misrounded"] <= counts["values"] and counts["values"] and dispersion >= 1):
                raise ValueError("no rate")
            rows.append({**address_of(record, component), **counts, "dispersion": dispersion})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"The rate {str(record)[:100]} cannot be read. Learn the baseline again") from error
    return pd.DataFrame(rows, columns=list(COLUMNS))
