"""Learned ranges: the largest values of a generation at each site, their spread over prompts and seeds, and values
outside that spread.

The peak of a case is the largest amax (or rms) of its arrays at a site, over steps and branches. A band is the observed
range of log2 peaks, widened on each side by a margin: a number of bits plus a multiple of the band's width, because a
site that varied by two bits over some prompts varies more over others. Peaks are more stable than single arrays: at the
micro model's 2000 sites, peaks vary by 0.26 bits (median of amax) over prompts and seeds, single arrays by 0.65.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.analysis.gate.rows import ADDRESS, address_of, address_record, case_labels, located, violations_of
from precision_lab.analysis.gate.violation import Findings
from precision_lab.errors import InputError
from precision_lab.numerics.formats import FORMATS
from precision_lab.record.layout import Layout

NEEDED = ("site", "dtype", "amax", "rms", "num_nan", "num_inf")
_METRICS = ("amax", "rms")
_LOGS = ("log2_amax", "log2_rms")
COLUMNS = (
    *ADDRESS,
    "order",
    "dtypes",
    *(f"log2_{metric}_{end}" for metric in _METRICS for end in ("min", "max")),
    "zeros",
    "num_nonfinite_min",
    "num_nonfinite_max",
)


@dataclass(frozen=True)
class Margin:
    """The allowed deviation of a range from the learned band.

    bits: on each side, in log2. spread: on each side, as a multiple of the band's width. headroom_bits: the distance to
    a format's largest number that may be lost, regardless of the band's width.
    """

    bits: float = 1.0
    spread: float = 2.0
    headroom_bits: float = 4.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise InputError(f"margin {name} is {value!r}, expected a number of at least 0")


def learn(activations: pd.DataFrame) -> pd.DataFrame:
    """The bands of a table of activations: one row per address, with COLUMNS, in order of execution.

    activations: one row per array, with at least the columns NEEDED; missing address columns are "-". `case`, or
    `prompt_id` and `seed`, identify a generation. Ranges are in log2 over the non-zero peaks, NaN without any; `zeros`
    states whether some peaks were zero. Arrays with NaN or infinities are excluded from peaks but counted: the smallest
    and the largest number of non-finite values over the cases, where each case counts its worst array. Raises
    InputError if a column is missing.
    """
    rows = _prepared(activations)
    peaks = rows.groupby([*ADDRESS, "case"], sort=False)[["num_nonfinite", *_LOGS]].max()
    groups, cases = rows.groupby(list(ADDRESS), sort=False), peaks.groupby(level=list(ADDRESS), sort=False)
    bands = pd.DataFrame({"order": groups["order"].min()})
    bands["dtypes"] = groups["dtype"].agg(lambda names: ",".join(sorted(set(names))))
    finite = peaks[list(_LOGS)].where(np.isfinite(peaks[list(_LOGS)])).groupby(level=list(ADDRESS), sort=False)
    for name in _LOGS:
        bands[f"{name}_min"], bands[f"{name}_max"] = finite[name].min(), finite[name].max()
    bands["zeros"] = (peaks["log2_amax"] == -math.inf).groupby(level=list(ADDRESS), sort=False).any()
    bands["num_nonfinite_min"], bands["num_nonfinite_max"] = cases["num_nonfinite"].min(), cases["num_nonfinite"].max()
    return bands.reset_index().sort_values(["variant", "order"], kind="stable", ignore_index=True)[list(COLUMNS)]


def judge(bands: pd.DataFrame, activations: pd.DataFrame, margin: Margin, layout: Layout) -> Findings:
    """The deviations of `activations` from `bands`: one violation per address and metric, described by its first array.

    Both must cover the same variants. A site that only one of them has is a violation. NaN is never inside a band.
    Raises InputError if a column of `activations` is missing.
    """
    rows = _prepared(activations)
    seen = rows.merge(bands, on=list(ADDRESS), how="left", suffixes=("", "_band"), indicator=True)
    known = seen[seen["_merge"] == "both"]
    findings = _sites(bands, seen, layout)
    for judged in (_dtypes(known, layout), _nonfinite(known, layout), _headroom(known, margin, layout)):
        findings.add(judged)
    for metric in _METRICS:
        findings.add(_range(known, metric, margin, layout))
    return findings


def to_records(bands: pd.DataFrame, component: str) -> list[dict[str, Any]]:
    """Bands as strict JSON, with one short record per address.

    Default values are omitted: `component`, the port `out`, no zeros, and no non-finite values.
    """
    records = []
    for row in bands.to_dict("records"):
        record = address_record(row, component) | {"order": int(row["order"]), "dtype": row["dtypes"]}
        for metric in _METRICS:
            ends = [row[f"log2_{metric}_{end}"] for end in ("min", "max")]
            record[metric] = None if math.isnan(ends[0]) else [round(end, 3) for end in ends]
        if row["zeros"]:
            record["zeros"] = True
        if row["num_nonfinite_max"]:
            record["nonfinite"] = [int(row["num_nonfinite_min"]), int(row["num_nonfinite_max"])]
        records.append(record)
    return records


def from_records(records: Sequence[Mapping[str, Any]], component: str) -> pd.DataFrame:
    """The bands that `to_records` wrote, ranges to 1e-3 bits. Raises InputError for records of another form."""
    rows = []
    for record in records:
        try:
            row: dict[str, Any] = {**address_of(record, component)}
            row |= {"order": int(record["order"]), "dtypes": str(record["dtype"])}
            for metric in _METRICS:
                low, high = record[metric] or (math.nan, math.nan)
                row |= {f"log2_{metric}_min": float(low), f"log2_{metric}_max": float(high)}
            least, most = record.get("nonfinite", (0, 0))
            row |= {"zeros": bool(record.get("zeros")), "num_nonfinite_min": int(least), "num_nonfinite_max": int(most)}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"The band {str(record)[:100]} cannot be read. Learn the baseline again") from error
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _prepared(activations: pd.DataFrame) -> pd.DataFrame:
    """Rows with ranges, in order of execution, with full addresses, `case`, log2 ranges and counts."""
    missing = [name for name in NEEDED if name not in activations]
    if missing:
        raise InputError(
            f"The activations have no column {missing[0]}, expected those of the range catalogue: {', '.join(NEEDED)}"
        )
    measured = activations[activations["num_nan"].notna().to_numpy(bool)]  # rows of other probes have no ranges
    rows = located(measured)
    rows["dtype"] = measured["dtype"].astype(object).to_numpy()
    rows["case"] = case_labels(measured)
    rows["num_nonfinite"] = (measured["num_nan"] + measured["num_inf"]).to_numpy(np.int64)
    rows["empty"] = (measured["numel"].to_numpy(float) == 0) if "numel" in measured else False
    usable = (rows["num_nonfinite"] == 0).to_numpy()
    for metric in _METRICS:
        values = measured[metric].to_numpy(float, na_value=np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            rows[f"log2_{metric}"] = np.where(usable, np.log2(values), np.nan)
    return rows.sort_values("order", kind="stable", ignore_index=True)


def _sites(bands: pd.DataFrame, seen: pd.DataFrame, layout: Layout) -> Findings:
    new = seen[seen["_merge"] == "left_only"]
    found = violations_of(
        new.assign(expected="no such site", got=new["dtype"] + " (accept it with an update)", magnitude=math.inf),
        "sites",
        "new site",
        layout,
    )
    there = pd.MultiIndex.from_frame(seen[list(ADDRESS)])
    gone = bands[~pd.MultiIndex.from_frame(bands[list(ADDRESS)]).isin(there)]
    gone = gone.assign(expected=gone["dtypes"], got="nothing", magnitude=math.inf, branch=None, step=None, case="-")
    # a missing site in the loop is reported at its first step
    in_loop = set(seen.loc[seen["step"].notna(), "component"])
    gone["step"] = gone["component"].map(lambda component: 0 if component in in_loop else None).astype(object)
    found += violations_of(gone, "sites", "site gone", layout)
    return Findings(found, Counter(sites=len(bands)))


def _dtypes(known: pd.DataFrame, layout: Layout) -> Findings:
    allowed = known["dtypes"].map({names: frozenset(names.split(",")) for names in known["dtypes"].unique()})
    other = np.array([name not in names for name, names in zip(known["dtype"], allowed, strict=True)], dtype=bool)
    bad = known[other]
    bad = bad.assign(expected=bad["dtypes"].str.replace(",", " or "), got=bad["dtype"], magnitude=math.inf)
    return Findings(violations_of(bad, "dtypes", "dtype", layout), Counter(dtypes=len(known)))


def _nonfinite(known: pd.DataFrame, layout: Layout) -> Findings:
    """Checks non-finite counts. Without learned ones none is allowed; otherwise the worst array of a case must lie
    within a factor of two of the learned counts.
    """
    worst = known.sort_values(["num_nonfinite", "order"], ascending=[False, True], kind="stable")
    worst = worst.drop_duplicates([*ADDRESS, "case"]).sort_values("order", kind="stable")
    count = worst["num_nonfinite"]
    low, high = np.floor(worst["num_nonfinite_min"] / 2), 2 * worst["num_nonfinite_max"]
    clean = worst["num_nonfinite_min"] == 0
    outside = (count > high) | (~clean & ((count < low) | (count == 0)))
    bad = worst[outside].assign(
        expected=[f"{a:.0f} to {b:.0f}" if b else "0" for a, b in zip(low[outside], high[outside], strict=True)],
        got=count[outside].astype(str),
        magnitude=math.inf,
    )
    # the violation describes the first array with too many, not the worst
    first = known[known["num_nonfinite"] > 2 * known["num_nonfinite_max"]].drop_duplicates([*ADDRESS, "case"])
    moments = ["branch", "step", "order"]
    where = first.set_index([*ADDRESS, "case"])[moments]
    if len(bad) and len(where):
        keyed = bad.set_index([*ADDRESS, "case"])
        shared = keyed.index.intersection(where.index)
        keyed.loc[shared, moments] = where.loc[shared, moments]
        bad = keyed.reset_index().sort_values("order", kind="stable")
    return Findings(violations_of(bad, "nonfinite", "num_nonfinite", layout), Counter(nonfinite=len(known)))


def _range(known: pd.DataFrame, metric: str, margin: Margin, layout: Layout) -> Findings:
    """Checks peaks. Those above the band are reported at the first array above it, those below at the case's first."""
    rows = known[(known["num_nonfinite"] == 0) & ~known["empty"]]
    cases = rows.groupby([*ADDRESS, "case"], sort=False)
    x, peak = rows[f"log2_{metric}"].to_numpy(float), cases[f"log2_{metric}"].transform("max").to_numpy(float)
    low, high = (rows[f"log2_{metric}_{end}"].to_numpy(float) for end in ("min", "max"))
    widened = margin.bits + margin.spread * (high - low)
    low, high = low - widened, high + widened
    zero = peak == -math.inf
    reached = np.where(zero, rows["zeros"].to_numpy(bool), peak >= low)  # false for NaN, as below
    outside = (~(x <= high) & ~zero) | (~reached & (cases.cumcount() == 0).to_numpy(bool))
    shown = np.where(reached, x, peak)
    beyond = np.maximum(low - shown, shown - high)
    bad = rows[outside].assign(
        expected=[_band(a, b) for a, b in zip(low[outside], high[outside], strict=True)],
        got=[_power(value) for value in shown[outside]],
        magnitude=np.where(np.isfinite(beyond), beyond, math.inf)[outside],
    )
    return Findings(violations_of(bad, "ranges", f"log2_{metric}", layout), Counter(ranges=len(rows)))


def _band(low: float, high: float) -> str:
    return "all zero" if math.isnan(low) else f"{low:.2f} to {high:.2f}"


def _power(x: float) -> str:
    return "undefined" if math.isnan(x) else "all zero" if x == -math.inf else f"{x:.2f}"


def _headroom(known: pd.DataFrame, margin: Margin, layout: Layout) -> Findings:
    """Checks the loss of headroom in the narrowest format that held the learned values with `headroom_bits` to spare.

    A site with at least that headroom in a format therefore never passes after it leaves the range of the format.
    """
    rows = known[known["log2_amax"].notna() & known["log2_amax_max"].notna()]
    lost = (rows["log2_amax"] - rows["log2_amax_max"]).to_numpy(float)
    bad = rows[~(lost <= margin.headroom_bits)]
    findings = Findings(checks=Counter(headroom=len(rows)))
    largest = {name: math.log2(fmt.max) for name, fmt in sorted(FORMATS.items(), key=lambda item: item[1].max)}
    needed = bad["log2_amax_max"] + margin.headroom_bits
    held = [next((name for name, top in largest.items() if bits <= top), "float32") for bits in needed]
    for name in dict.fromkeys(held):
        of_format = bad[np.array(held) == name]
        left = largest[name] - of_format["log2_amax"]
        least = largest[name] - of_format["log2_amax_max"] - margin.headroom_bits
        described = of_format.assign(
            expected=[f"at least {bits:.2f}" for bits in least],
            got=[f"{bits:.2f}" for bits in left],
            magnitude=least - left,
        )
        findings.violations += violations_of(described, "headroom", f"headroom_bits_{name}", layout)
    return findings
