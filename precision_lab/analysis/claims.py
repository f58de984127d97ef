"""Claims of an experiment, judged from its tables alone.

A claim compares a quantity of one variant with that of another, case by case (prompt and seed) or round by round of
timing. It is judged by the interval of the ratio against a tolerance: the noise floor, measured between two variants
that are the same function, or a stated margin, whichever is larger. Without the data there is no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.analysis.measures import METRICS
from precision_lab.errors import InputError, nearest
from precision_lab.numerics.intervals import Ratio, geometric_mean_ratio, paired_ratio
from precision_lab.record.run import Run

RELATIONS = ("larger", "smaller", "equal", "not_larger", "not_smaller", "nonzero", "zero")
_COUNTED = ("nonzero", "zero")
_OPERATIONS = "narrow_operations"
_COUNTS = ("nonfinite", _OPERATIONS)


@dataclass(frozen=True)
class Claim:
    """One statement of an experiment's yaml.

    metric:

    - amax: of the outputs at `sites`, of one `stream` if named, the largest over steps;
    - drift: rel_l2 against the reference after the last step, free-running, of the outputs at `sites`, by default of
      the result;
    - kl: divergence of the result from the reference's in nats, free-running, the mean over steps; only where the
      result holds logits;
    - latency: of a step;
    - largest_share: of one update in the final `stream`, by default the main one, the mean over steps;
    - nonfinite: values at recorded outputs;
    - narrow_operations: of a device, those that compute in less than fp32.

    relation: that of `subject` to `against`, or to `bound`. noise: variants that should equal `against`, or the subject
    where there is a bound; the largest difference of one of them is the floor. gate: whether a refuted claim is an
    error.
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
        for what, choices in (("metric", (*METRICS, _OPERATIONS)), ("relation", RELATIONS)):
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
    """supported, refuted or inconclusive, and the numbers behind it; `reason` where they are undefined."""

    verdict: str
    effect: float
    lo: float = math.nan
    hi: float = math.nan
    noise_floor: float = math.nan
    reason: str = ""


def judge(claim: Claim, run: Run) -> Verdict:
    """The verdict on one claim about a run."""
    named = [name for name in (claim.subject, claim.against, *claim.noise) if name]
    absent = [name for name in named if name not in run.manifest.variants]
    if absent:
        return Verdict("inconclusive", math.nan, reason=f"variant {absent[0]} was not run")
    measure = METRICS.get(claim.metric)
    if measure is None:  # of a device, not of a run
        return _unmeasured(claim.subject)
    values = {name: measure(run, name, claim.sites, claim.stream) for name in named}
    unmeasured = [name for name in named if values[name].empty]
    if unmeasured:
        return _unmeasured(unmeasured[0])
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


def judge_operations(claim: Claim, verdicts: Sequence[str]) -> Verdict:
    """The verdict on a claim about a device, whose operations compute in less than fp32 or do not.

    verdicts: one an operation, as `precision_lab.device.behaviour.verdict` gives them: "supported" for one that
    computes in fp32, "refuted" for one that does not, "inconclusive".
    """
    if claim.metric != _OPERATIONS or not verdicts:
        return _unmeasured(claim.subject)
    narrow = {"refuted": 1.0, "supported": 0.0}
    return _judge_count(claim, pd.Series([narrow.get(verdict, math.nan) for verdict in verdicts]))


def _unmeasured(variant: str) -> Verdict:
    return Verdict("inconclusive", math.nan, reason=f"nothing was measured of variant {variant}")


def _judge_count(claim: Claim, counts: pd.Series) -> Verdict:
    """Decided by the count; undecided where it is 0 and something could not be counted (NaN)."""
    count, open_ones = float(counts.sum()), int(counts.isna().sum())
    if count == 0 and open_ones:
        return Verdict("inconclusive", count, reason=f"{open_ones} of {len(counts)} are undecided")
    return Verdict("supported" if (count > 0) == (claim.relation == "nonzero") else "refuted", count)


def decide(relation: str, lo: float, hi: float, tolerance: float) -> str:
    """supported, refuted or inconclusive, by the interval [lo, hi] of a ratio.

    Ratios from 1 / (1 + tolerance) to 1 + tolerance count as equal.
    """
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


def noise_floor(equivalent: pd.Series, original: pd.Series) -> float:
    """The typical relative difference of two variants that are the same function: exp(rms of the log ratio) - 1.

    Over the cases that both have; NaN where a value is not positive and finite. A root mean square neither grows nor
    shrinks with the number of cases, as a maximum or a mean would.
    """
    paired = pd.concat([equivalent, original], axis=1, join="inner").to_numpy(float)
    if not len(paired) or not np.all(np.isfinite(paired) & (paired > 0)):
        return math.nan
    logs = np.log(paired[:, 0] / paired[:, 1])
    return float(np.expm1(np.sqrt(np.mean(logs**2))))
