"""Drift bands: how far from its reference a variant was at each site, by the least and the largest error of a case.

rel_l2 varies with the step and the prompt far more than ranges do, and some cases run away from the reference. The
least error of a case, over its steps and branches, varies little: it rises when the arithmetic gets worse everywhere.
The largest shows what gets worse at some steps. Both have a band over the cases, in log2, with a margin on each side.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.analysis.gate.bands import Margin
from precision_lab.analysis.gate.rows import ADDRESS, address_of, address_record, case_labels, located, violations_of
from precision_lab.analysis.gate.violation import Findings
from precision_lab.errors import InputError
from precision_lab.record.layout import Layout

_KEY = (*ADDRESS, "mode")
_ENDS = ("least", "largest")
_MODES = {"free": "", "teacher": " (local)", "base": " (to the reference of the run's settings)"}
COLUMNS = (*_KEY, "order", *(f"{name}_{end}" for name in _ENDS for end in ("min", "max")), "identical", "undefined")


def learn(drift: pd.DataFrame, noise: Mapping[tuple[str, str], float]) -> pd.DataFrame:
    """Bands of the table `drift`: one row an address and mode, with COLUMNS, in order of execution.

    noise: the noise floor of (component, site), rel_l2, from pinned cases; a smaller error counts as that large, since
    rounding alone decides how small it is. `identical`: a case equalled the reference. `undefined`: a case had an array
    without a relative error (a reference of zeros, values that are not finite).
    """
    rows = _prepared(drift, noise)
    cases = _per_case(rows).replace(dict.fromkeys(_ENDS, -math.inf), math.nan)
    groups = cases.groupby(list(_KEY), sort=False)
    bands = pd.DataFrame({"order": groups["order"].min()})
    for name in _ENDS:
        bands[f"{name}_min"], bands[f"{name}_max"] = groups[name].min(), groups[name].max()
    bands["identical"], bands["undefined"] = groups["identical"].any(), groups["undefined"].any()
    return bands.reset_index().sort_values(["variant", "mode", "order"], kind="stable", ignore_index=True)[
        list(COLUMNS)
    ]


def judge(
    bands: pd.DataFrame,
    drift: pd.DataFrame,
    margin: Margin,
    noise: Mapping[tuple[str, str], float],
    layout: Layout,
) -> Findings:
    """Where the table `drift` leaves `bands`: one violation an address and metric; NaN lies outside.

    Sites that only one side has are violations. `margin.headroom_bits` has no effect.
    """
    rows = _prepared(drift, noise)
    both = _per_case(rows).merge(bands, on=list(_KEY), how="outer", suffixes=("", "_band"), indicator=True)
    known = both[both["_merge"] == "both"]
    findings = Findings(checks=Counter(drift=2 * len(known)))
    nothing = {"magnitude": math.inf, "branch": None, "step": None}
    gone, new = both[both["_merge"] == "right_only"], both[both["_merge"] == "left_only"]
    gone = gone.assign(order=gone["order_band"], case="-", expected="a drift", got="nothing", **nothing)
    new = new.assign(expected="no such drift", got="one", **nothing)
    findings.violations += violations_of(gone, "drift", "drift gone", layout)
    findings.violations += violations_of(new, "drift", "new drift", layout)
    for name in _ENDS:
        x, low, high = (known[column].to_numpy(float) for column in (name, f"{name}_min", f"{name}_max"))
        widened = margin.bits + margin.spread * (high - low)
        low, high = low - widened, high + widened
        inside = np.where(np.isneginf(x), known["identical_band"], (low <= x) & (x <= high))
        inside = np.where(known["undefined"], known["undefined_band"], inside).astype(bool)
        beyond = np.maximum(low - x, x - high)
        bad = known.assign(
            branch=known[f"branch_{name}"],
            step=known[f"step_{name}"],
            expected=[f"{a:.2f} to {b:.2f}" for a, b in zip(low, high, strict=True)],
            got=[_error(a, u) for a, u in zip(x, known["undefined"], strict=True)],
            magnitude=np.where(np.isfinite(beyond) & ~known["undefined"].to_numpy(bool), beyond, math.inf),
        )
        bad = bad[~inside].sort_values("order", kind="stable")
        for mode in bad["mode"].unique():
            metric = f"log2_rel_l2 {name}{_MODES.get(mode, mode)}"
            findings.violations += violations_of(bad[bad["mode"] == mode], "drift", metric, layout)
    return findings


def to_records(bands: pd.DataFrame, component: str) -> list[dict[str, Any]]:
    """Bands as strict JSON, one short record an address and mode.

    The component `component`, the port `out` and flags that are false are left out.
    """
    records = []
    for row in bands.to_dict("records"):
        record = address_record(row, component, _KEY) | {"order": int(row["order"])}
        for name in _ENDS:
            low, high = row[f"{name}_min"], row[f"{name}_max"]
            record[name] = None if math.isnan(low) else [round(low, 3), round(high, 3)]
        records.append(record | {name: True for name in ("identical", "undefined") if row[name]})
    return records


def from_records(records: Sequence[Mapping[str, Any]], component: str) -> pd.DataFrame:
    """The bands that `to_records` wrote, to 1e-3 bits. Raises InputError for records of another form."""
    rows = []
    for record in records:
        try:
            row: dict[str, Any] = {**address_of(record, component, _KEY), "order": int(record["order"])}
            for name in _ENDS:
                low, high = record[name] or (math.nan, math.nan)
                row |= {f"{name}_min": float(low), f"{name}_max": float(high)}
            rows.append(row | {name: bool(record.get(name)) for name in ("identical", "undefined")})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"The drift {str(record)[:100]} cannot be read. Learn the baseline again") from error
    return pd.DataFrame(rows, columns=list(COLUMNS))


def noise_floors(sketches: pd.DataFrame) -> dict[tuple[str, str], float]:
    """The noise floor of every (component, site) in the table of `sketches.learn`, and of the modules around it."""
    floors: dict[tuple[str, str], float] = {}
    for component, site, noise in sketches[["component", "site", "noise"]].drop_duplicates().itertuples(index=False):
        parts = site.split(".")
        for length in range(1, len(parts) + 1):
            key = component, ".".join(parts[:length])
            floors[key] = max(noise, floors.get(key, 0.0))
    return floors


def _error(x: float, undefined: bool) -> str:
    return "undefined" if undefined else "identical to the reference" if math.isinf(x) else f"{x:.2f}"


def _per_case(rows: pd.DataFrame) -> pd.DataFrame:
    """One row an address, mode and case: its errors of _ENDS with their branch and step, and the order of the site."""
    key = [*_KEY, "case"]
    groups = rows.assign(identical=np.isneginf(rows["log2"]), undefined=rows["log2"].isna()).groupby(key, sort=False)
    cases = groups.agg(order=("order", "min"), identical=("identical", "any"), undefined=("undefined", "any"))
    for name, ascending in zip(_ENDS, (True, False), strict=True):
        extreme = rows.sort_values("log2", ascending=ascending, kind="stable").drop_duplicates(key).set_index(key)
        for column, values in ((name, "log2"), (f"branch_{name}", "branch"), (f"step_{name}", "step")):
            cases[column] = extreme[values]
    return cases.reset_index()


def _prepared(drift: pd.DataFrame, noise: Mapping[tuple[str, str], float]) -> pd.DataFrame:
    rows = located(drift)
    rows["mode"] = drift["mode"].astype(object).to_numpy()
    rows["case"] = case_labels(drift)
    errors = drift["rel_l2"].to_numpy(float, na_value=np.nan)
    floor = np.array([noise.get(key, 0.0) for key in zip(rows["component"], rows["site"], strict=True)])
    errors = np.where((errors > 0) & (errors < floor), floor, errors)
    with np.errstate(divide="ignore"):
        rows["log2"] = np.log2(errors)
    return rows.sort_values("order", kind="stable", ignore_index=True)
