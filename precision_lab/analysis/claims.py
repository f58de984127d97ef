"""Claims of an experiment, judged from its tables alone.

A claim compares a quantity of one variant with that of another, case by case (prompt and seed) or timing round by
round, and is judged by the interval of the ratio against a tolerance: the noise floor, measured between two variants
that are the same function, or a stated margin, whichever is larger. Without the data there is no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.errors import InputError, nearest
from precision_lab.numerics.intervals import Ratio, geometric_mean_ratio, paired_ratio
from precision_lab.record.address import split_address
from precision_lab.record.glob import compile_glob, spell

RELATIONS = ("larger", "smaller", "equal", "not_larger", "not_smaller", "nonzero", "zero")
_COUNTED = ("nonzero", "zero")
_COUNTS = ("nonfinite", "narrow_operations")


@dataclass(frozen=True)
class Claim:
    """One statement of an experiment's yaml.

    `metric`: amax (of the outputs at `sites`, of one `stream` if named, largest over steps), drift (rel_l2 against the
    reference after the last step, free-running, of the outputs at `sites`; without them of the latents), latency (of a
    step), largest_share (of one branch in the final `stream`, mean over steps), nonfinite (values at recorded outputs)
    or narrow_operations (of a device, those that compute in less than fp32). `relation` is that of `subject` to
    `against`, or to `bound`. `noise` names the variants that should equal `against`, or the subject where there is a
    bound: the largest difference of one of them is the floor. `gate` makes a refuted claim an error.
    """

    id: str
    text: str
    source: str
    metric: str
    relation: str
    subject: str
    against: str = ""
    bound: float | None = None
    sites: tuple[str, ...] = ()
    stream: str | None = None
    noise: tuple[str, ...] = ()
    margin: float = 0.0
    gate: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Claim:
        """Raises InputError for a claim with unknown, missing or contradictory entries."""
        known = cls.__dataclass_fields__
        for key in raw:
            if key not in known:
                raise InputError(f"Claim {raw.get('id', '?')}: unknown entry {key!r}. {nearest(str(key), known)}")
        for key in ("id", "text", "source", "metric", "relation", "subject"):
            if not isinstance(raw.get(key), str):
                raise InputError(f"Claim {raw.get('id', '?')}: {key} is missing, expected text")
        several = {key: _names(raw, key) for key in ("sites", "noise")}
        claim = cls(**{**raw, **several})
        for what, choices in (("metric", _METRICS), ("relation", RELATIONS)):
            value = getattr(claim, what)
            if value not in choices:
                raise InputError(f"Claim {claim.id}: {what} is {value!r}. {nearest(value, choices)}")
        if (claim.metric in _COUNTS) != (claim.relation in _COUNTED):
            relations, metrics = ", ".join(_COUNTED), ", ".join(_COUNTS)
            raise InputError(
                f"Claim {claim.id}: relations {relations} go with the metrics {metrics}, and only with them"
            )
        if claim.relation not in _COUNTED and bool(claim.against) == (claim.bound is not None):
            raise InputError(f"Claim {claim.id}: expected one of against, the name of a variant, and bound, a number")
        if claim.bound is not None and (not isinstance(claim.bound, int | float) or not claim.bound > 0):
            raise InputError(f"Claim {claim.id}: bound is {claim.bound!r}, expected a number above 0")
        if claim.metric == "amax" and not claim.sites:
            raise InputError(f"Claim {claim.id}: sites is missing, the metric amax needs a pattern")
        return claim


def _names(raw: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A name or a list of names. Raises InputError for anything else."""
    value = raw.get(key) or ()
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InputError(f"Claim {raw.get('id', '?')}: {key} is {value!r}, expected a name or a list of names")
    return tuple(names)


@dataclass(frozen=True)
class Verdict:
    """supported, refuted or inconclusive, and the numbers it rests on; `reason` where they are undefined."""

    verdict: str
    effect: float
    lo: float = math.nan
    hi: float = math.nan
    noise_floor: float = math.nan
    reason: str = ""


@dataclass
class Tables:
    """The tables of a run, or of a device: its `operations` have the columns op, verdict (see `device.behaviour`)."""

    activations: pd.DataFrame
    drift: pd.DataFrame
    latency: pd.DataFrame
    variants: frozenset[str]
    operations: pd.DataFrame = field(default_factory=pd.DataFrame)


def judge(claim: Claim, tables: Tables) -> Verdict:
    """The verdict on one claim."""
    named = [name for name in (claim.subject, claim.against, *claim.noise) if name]
    absent = [name for name in named if name not in tables.variants]
    if absent:
        return Verdict("inconclusive", math.nan, reason=f"variant {absent[0]} was not run")
    values = {name: _METRICS[claim.metric](tables, name, claim) for name in named}
    unmeasured = [name for name in named if values[name].empty]
    if unmeasured:
        return Verdict("inconclusive", math.nan, reason=f"nothing was measured of variant {unmeasured[0]}")
    subject = values[claim.subject]
    if claim.relation in _COUNTED:
        return _judge_count(claim, subject)
    against = values[claim.against] if claim.against else pd.Series(claim.bound, index=subject.index)
    ratio = _ratio(claim, subject, against)
    if math.isnan(ratio.lo):
        reason = (
            "fewer than two comparable cases" if math.isfinite(ratio.estimate) else "undefined or non-finite values"
        )
        return Verdict("inconclusive", ratio.estimate, reason=reason)
    original = values[claim.against or claim.subject]
    floors = [noise_floor(values[name], original) for name in claim.noise]
    floor = float(np.max(floors)) if floors else math.nan
    if claim.noise and math.isnan(floor):
        return Verdict("inconclusive", ratio.estimate, ratio.lo, ratio.hi, reason="the noise floor is undefined")
    tolerance = max(claim.margin, floor) if claim.noise else claim.margin
    return Verdict(decide(claim.relation, ratio.lo, ratio.hi, tolerance), ratio.estimate, ratio.lo, ratio.hi, floor)


def _judge_count(claim: Claim, counts: pd.Series) -> Verdict:
    """What was counted decides; where nothing was, what could not be counted (NaN) leaves it open."""
    count, open_ones = float(counts.sum()), int(counts.isna().sum())
    if count == 0 and open_ones:
        return Verdict("inconclusive", count, reason=f"{open_ones} of {len(counts)} are undecided")
    return Verdict("supported" if (count > 0) == (claim.relation == "nonzero") else "refuted", count)


def decide(relation: str, lo: float, hi: float, tolerance: float) -> str:
    """What the interval [lo, hi] of a ratio says of a relation, ratios within 1 + tolerance either way being equal."""
    upper = 1 + tolerance
    lower = 1 / upper
    above, below, within = lo > upper, hi < lower, lower <= lo and hi <= upper
    outcomes = {
        "larger": (above, hi <= upper),
        "smaller": (below, lo >= lower),
        "equal": (within, above or below),
        "not_larger": (hi <= upper, above),
        "not_smaller": (lo >= lower, below),
    }
    supported, refuted = outcomes[relation]
    return "supported" if supported else "refuted" if refuted else "inconclusive"


def _ratio(claim: Claim, subject: pd.Series, against: pd.Series) -> Ratio:
    paired = pd.concat([subject, against], axis=1, join="inner")
    left, right = paired.iloc[:, 0].to_numpy(float), paired.iloc[:, 1].to_numpy(float)
    if claim.metric == "latency":
        return paired_ratio(left, right)
    if np.array_equal(left, right) and len(left) > 1 and np.all(np.isfinite(left) & (left > 0)):
        return Ratio(1.0, 1.0, 1.0)
    return geometric_mean_ratio(left, right)


def noise_floor(twin: pd.Series, original: pd.Series) -> float:
    """The typical relative difference of two variants that are the same function: exp(rms of the log ratio) - 1.

    Over the cases both have; NaN where a value is not positive and finite. A root mean square neither grows nor shrinks
    with the number of cases, as a maximum or a mean would.
    """
    paired = pd.concat([twin, original], axis=1, join="inner").to_numpy(float)
    if not len(paired) or not np.all(np.isfinite(paired) & (paired > 0)):
        return math.nan
    logs = np.log(paired[:, 0] / paired[:, 1])
    return float(np.expm1(np.sqrt(np.mean(logs**2))))


_CASE = ["prompt_id", "seed"]


def _amax(tables: Tables, variant: str, claim: Claim) -> pd.Series:
    """Per case, the geometric mean over sites of the largest amax over steps and branches."""
    if not {"amax", "num_nan", "num_inf"} <= set(tables.activations):
        return pd.Series(dtype=float)
    rows = tables.activations[tables.activations["variant"] == variant]
    rows = _at_sites(rows[rows["port"].str.startswith("out")], claim.sites)
    if claim.stream is not None:
        rows = rows[rows["stream"] == claim.stream]
    rows = rows.assign(amax=rows["amax"].where((rows["num_nan"] + rows["num_inf"]) == 0))
    peaks = rows.groupby([*_CASE, "component", "site", "port"])["amax"].agg(lambda a: a.max(skipna=False))
    return np.exp(np.log(peaks).groupby(level=_CASE).agg(lambda a: a.mean(skipna=False)))


def _at_sites(rows: pd.DataFrame, patterns: tuple[str, ...]) -> pd.DataFrame:
    """Rows of the sites that a pattern names; a negative number counts from the last of those recorded."""
    chosen = pd.Series(False, index=rows.index)
    for pattern in patterns:
        component, glob = split_address(pattern, "transformer")
        expression = compile_glob(glob)
        own = rows["component"] == component
        named = {
            site for site, spelled in spell(rows.loc[own, "site"].unique()).items() if expression.fullmatch(spelled)
        }
        chosen |= own & rows["site"].isin(named)
    return rows[chosen]


def _largest_share(tables: Tables, variant: str, claim: Claim) -> pd.Series:
    """Per case, the share of the branch that gave most of the final stream; largest of each step, mean over steps."""
    if "final_share" not in tables.activations:
        return pd.Series(dtype=float)
    rows = tables.activations[(tables.activations["variant"] == variant) & (tables.activations["branch"] != "uncond")]
    rows = rows[rows["final_share"].notna() & (rows["stream"] == (claim.stream or "img"))]
    return rows.groupby([*_CASE, "step"])["final_share"].max().groupby(level=_CASE).mean()


def _drift(tables: Tables, variant: str, claim: Claim) -> pd.Series:
    return final_drift(tables.drift, variant, claim.sites or (LATENTS,))


LATENTS = "pipeline:euler_step"


def final_drift(drift: pd.DataFrame, variant: str, sites: tuple[str, ...] = (LATENTS,)) -> pd.Series:
    """Per case (prompt_id, seed), rel_l2 after the last step, free-running; of several outputs the largest.

    Empty if it was not recorded, NaN for a case with a value that is not finite.
    """
    if "rel_l2" not in drift:
        return pd.Series(dtype=float)
    rows = _at_sites(drift[(drift["variant"] == variant) & (drift["mode"] == "free")], sites)
    step = rows["step"].astype("Float64").fillna(-1)  # the pixels belong to no step
    last = step == step.groupby([rows["component"], rows["site"]]).transform("max")
    return rows[last].groupby(_CASE)["rel_l2"].agg(lambda errors: errors.max(skipna=False))


def _latency(tables: Tables, variant: str, claim: Claim) -> pd.Series:
    rows = tables.latency
    return rows[(rows["variant"] == variant) & (rows["what"] == "step")].set_index("round")["seconds"]


def _nonfinite(tables: Tables, variant: str, claim: Claim) -> pd.Series:
    rows = tables.activations[tables.activations["variant"] == variant]
    if not {"num_nan", "num_inf"} <= set(rows):
        return pd.Series(dtype=float)
    return (rows["num_nan"] + rows["num_inf"]).dropna().astype(float)  # rows of other probes count nothing


def _narrow_operations(tables: Tables, variant: str, claim: Claim) -> pd.Series:
    """1 an operation that computes in less than fp32, 0 for one that does not, NaN where that is not known."""
    if tables.operations.empty:
        return pd.Series(dtype=float)
    return tables.operations["verdict"].map({"refuted": 1.0, "supported": 0.0}).astype(float)


_METRICS: Mapping[str, Callable[[Tables, str, Claim], pd.Series]] = {
    "amax": _amax,
    "drift": _drift,
    "largest_share": _largest_share,
    "latency": _latency,
    "narrow_operations": _narrow_operations,
    "nonfinite": _nonfinite,
}
