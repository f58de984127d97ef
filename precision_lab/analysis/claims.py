"""Claims of an experiment, judged from its tables alone.

A claim compares a quantity of one variant with that of another, case by case (prompt and seed) or round by round of
timing. It is judged by the interval of the ratio over prompts, or over rounds, against a tolerance: the noise floor,
measured between two variants that are the same function, or a stated margin, whichever is larger
(`precision_lab.analysis.decision`). Without the data there is no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.analysis.decision import TABLE, decide
from precision_lab.analysis.health import AGAINST_REFERENCE, reference_fault
from precision_lab.analysis.measures import METRICS, Metric
from precision_lab.analysis.ratios import PROMPT, noise_floor, over_rounds, over_units, unit_of
from precision_lab.errors import InputError, nearest
from precision_lab.numerics.intervals import LEAST_GROUPS, Ratio
from precision_lab.record.run import Run

_COUNTED = ("nonzero", "zero")
RELATIONS = (*TABLE, *_COUNTED)
_OPERATIONS = "narrow_operations"
_COUNTS = ("basin_left", "nonfinite", _OPERATIONS)
SURVIVAL = {
    "unchanged_codes": "changed_codes",
    "survived_correlation": "correlation",
    "changed_correlation": "correlation_changed",
    "survived_gain": "gain",
    "step_over_delta": "step_over_delta",
}
"""Metrics of what arrives of a change of weights, and the columns of survival.parquet that they are read from."""


@dataclass(frozen=True)
class Claim:
    """One statement of an experiment's yaml.

    metric:

    - amax: of the outputs at `sites`, of one `stream` if named, the largest over steps;
    - drift: rel_l2 against the reference after the last step, free-running, of the outputs at `sites`, by default of
      the result;
    - base_drift: the same of the result, against the reference with the run's settings, so that the effect of settings
      of the variant's own is included;
    - kl: divergence of the result from the reference's in nats, free-running, the mean over steps; only where the
      result holds logits;
    - latency: of a step;
    - largest_share: of one update in the final `stream`, by default the main one, the mean over steps;
    - nonfinite: values at recorded outputs;
    - psnr_db, ssim: of the picture against the reference's; higher is better. PSNR, its bound, margin and noise floor
      are in dB;
    - flat_grain, flat_white_drift, grid_8, grid_16, grid_32, displacement, flip, lpips: of the picture beside the
      reference's; lower is better (`precision_lab.numerics.pictures`);
    - basin_left: generations that ended in another composition than the reference's; basin_step: the step at which they
      left, from 1; one more than there are steps for one that did not (`precision_lab.numerics.basin`);
    - weight_bytes, bits_per_weight: of the default component, all parameters with their scales; known without error;
    - narrow_operations: of a device, those that compute in less than fp32;
    - unchanged_codes, survived_correlation, changed_correlation, survived_gain, step_over_delta: of what arrives of a
      change of weights in a format, the median over linears (`precision_lab.analysis.survival`).

    relation: that of `subject` to `against`, or to `bound`. noise: variants that should equal `against`, or the subject
    where there is a bound; the largest difference of one of them is the floor. margin: the smallest difference that
    matters, relative. gate: whether a claim that is refuted, or that nothing was measured for, is an error.
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
        what = f"Claim {raw.get('id', '?')}"
        known = cls.__dataclass_fields__
        for key in raw:
            if key not in known:
                raise InputError(f"{what}: unknown entry {key!r}. {nearest(str(key), known)}")
        for key in ("id", "text", "source", "metric", "relation", "subject"):
            if not isinstance(raw.get(key), str):
                raise InputError(f"{what}: {key} is {raw.get(key)!r}, expected text")
        for key in ("against", "stream"):
            if not isinstance(raw.get(key), str | None):
                raise InputError(f"{what}: {key} is {raw[key]!r}, expected a name")
        for key, least in (("bound", "above 0"), ("margin", "of at least 0")):
            value = raw.get(key)
            if value is not None and not (_is_number(value) and (value > 0 or (value == 0 and key == "margin"))):
                raise InputError(f"{what}: {key} is {value!r}, expected a number {least}")
        if not isinstance(raw.get("gate", False), bool):
            raise InputError(f"{what}: gate is {raw['gate']!r}, expected true or false")
        for key, choices in (("metric", (*METRICS, _OPERATIONS, *SURVIVAL)), ("relation", RELATIONS)):
            if raw[key] not in choices:
                raise InputError(f"{what}: {key} is {raw[key]!r}. {nearest(raw[key], choices)}")
        named = {key: _names(raw, key) for key in ("sites", "noise")}
        entries = {key: value for key, value in raw.items() if value is not None}
        claim = cls(**{**entries, **named})
        claim._check_together()
        return claim

    def _check_together(self) -> None:
        counted, what = self.relation in _COUNTED, f"Claim {self.id}"
        if (self.metric in _COUNTS) != counted:
            relations, metrics = ", ".join(_COUNTED), ", ".join(_COUNTS)
            raise InputError(f"{what}: relations {relations} go with the metrics {metrics}, and only with them")
        if not counted and bool(self.against) == (self.bound is not None):
            raise InputError(f"{what}: expected one of against, the name of a variant, and bound, a number")
        metric = METRICS.get(self.metric)
        unused = {
            "against": counted and self.against,
            "bound": counted and self.bound is not None,
            "noise": counted and self.noise,
            "margin": counted and self.margin,
            "sites": self.sites and not (metric and metric.sites),
            "stream": self.stream and not (metric and metric.stream),
        }
        for key, stated in unused.items():
            if stated:
                raise InputError(f"{what}: {key} means nothing for the metric {self.metric}. Leave it out")
        if self.metric == "amax" and not self.sites:
            raise InputError(f"{what}: sites is missing, the metric amax needs a pattern")

    @property
    def variants(self) -> list[str]:
        """The variants that it names."""
        return [name for name in (self.subject, self.against, *self.noise) if name]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _names(raw: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A name or a list of names. Raises InputError for anything else."""
    value = raw.get(key) or ()
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InputError(f"Claim {raw.get('id', '?')}: {key} is {value!r}, expected a name or a list of names")
    return tuple(names)


@dataclass(frozen=True)
class Verdict:
    """supported, refuted or inconclusive, and the numbers behind it; `reason` where the claim could not be judged.

    effect, lo, hi: the ratio to `against` (for PSNR the difference in dB), or beside a bound the quantity itself, or a
    count. noise_floor: relative, for PSNR in dB.
    """

    verdict: str
    effect: float
    lo: float = math.nan
    hi: float = math.nan
    noise_floor: float = math.nan
    reason: str = ""


def judge(claim: Claim, run: Run) -> Verdict:
    """The verdict on one claim about a run."""
    absent = [name for name in claim.variants if name not in run.manifest.variants]
    if absent:
        return _unjudged(f"variant {absent[0]} was not run")
    unsound = reference_fault(run, claim.variants) if claim.metric in AGAINST_REFERENCE else None
    if unsound:
        return _unjudged(unsound.text)
    metric = METRICS.get(claim.metric)
    if metric is None:  # of a device or of weights, not of a run
        return _unmeasured(claim.subject)
    values = {name: metric.measure(run, name, claim.sites, claim.stream) for name in claim.variants}
    unmeasured = [name for name in claim.variants if values[name].empty]
    if unmeasured:
        return _unmeasured(unmeasured[0])
    if claim.relation in _COUNTED:
        return _judge_count(claim, values[claim.subject])
    linear = {name: series.map(metric.linear) for name, series in values.items()}
    return _judge_ratio(claim, metric, linear, unit_of(run.manifest))


def _judge_ratio(claim: Claim, metric: Metric, values: Mapping[str, pd.Series], unit: str) -> Verdict:
    subject = values[claim.subject]
    bound = None if claim.bound is None else metric.linear(claim.bound)
    against = values[claim.against] if bound is None else pd.Series(bound, index=subject.index)
    ratio = _ratio(metric, subject, against, unit)
    if not math.isfinite(ratio.estimate):
        return _unjudged("undefined or non-finite values")
    effect, lo, hi = (metric.shown(value, claim.bound) for value in (ratio.estimate, ratio.lo, ratio.hi))
    if math.isnan(ratio.lo):
        return Verdict("inconclusive", effect, reason=_too_few(metric, subject, against, unit))
    original = values[claim.against or claim.subject]
    floors = [noise_floor(values[name], original, unit) for name in claim.noise]
    floor = float(np.max(floors)) if floors else math.nan
    if claim.noise and math.isnan(floor):
        return Verdict("inconclusive", effect, lo, hi, reason="the noise floor is undefined")
    verdict = decide(claim.relation, ratio.lo, ratio.hi, metric.relative(claim.margin), floor)
    shown_floor = metric.shown(1 + floor) if metric.unit == "dB" else floor
    return Verdict(verdict, effect, lo, hi, shown_floor)


def _ratio(metric: Metric, subject: pd.Series, against: pd.Series, unit: str) -> Ratio:
    """The ratio with its interval, which is a point for a metric without error."""
    if metric.exact:
        return Ratio(*[float(subject.iloc[0] / against.iloc[0])] * 3)
    return over_rounds(subject, against) if metric.by_round else over_units(subject, against, unit)


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
    return _unjudged(f"nothing was measured of variant {variant}")


def _unjudged(reason: str) -> Verdict:
    return Verdict("inconclusive", math.nan, reason=reason)


def _too_few(metric: Metric, subject: pd.Series, against: pd.Series, unit: str) -> str:
    if metric.by_round:
        return "too few rounds: 1, expected at least 2"
    found = subject.index.intersection(against.index).unique(unit)
    return f"too few {'prompts' if unit == PROMPT else 'seeds'}: {len(found)}, expected at least {LEAST_GROUPS}"


def _judge_count(claim: Claim, counts: pd.Series) -> Verdict:
    """Decided by the count; undecided where it is 0 and something could not be counted (NaN)."""
    count, open_ones = float(counts.sum()), int(counts.isna().sum())
    if count == 0 and open_ones:
        return Verdict("inconclusive", count, reason=f"{open_ones} of {len(counts)} are undecided")
    return Verdict("supported" if (count > 0) == (claim.relation == "nonzero") else "refuted", count)
