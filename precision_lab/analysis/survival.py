"""What arrives of a change in each format, over the linears of a model, and verdicts on claims about it.

A claim names its subject as FORMAT:ORDER:ROUNDING, such as `affine4:after:nearest`. The linears are its units: it is
judged by the median over them, with the interval of the sign test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.analysis.claims import SURVIVAL, Claim, Verdict
from precision_lab.analysis.decision import INCONCLUSIVE, decide
from precision_lab.errors import InputError, nearest
from precision_lab.numerics.intervals import paired_ratio

WORST = "correlation"
"""The worst linear of a format is the one of least correlation."""

_KEYS = ["format", "order", "rounding"]
_MEDIANS = (
    "step_over_delta",
    "changed_codes",
    "changed_values",
    "correlation",
    "correlation_changed",
    "gain",
    "relative_error",
    "codes_without_delta",
)


@dataclass(frozen=True)
class Row:
    """A format, order and rounding: medians over its linears, and the linear of least correlation.

    changed_codes is NaN for a format that states no codes, a correlation where it is undefined at all linears.
    """

    format: str
    order: str
    rounding: str
    linears: int
    step_over_delta: float
    changed_codes: float
    changed_values: float
    correlation: float
    correlation_changed: float
    gain: float
    relative_error: float
    codes_without_delta: float
    worst: str
    worst_correlation: float


def summarize(table: pd.DataFrame) -> list[Row]:
    """One row for each format, order and rounding, in the order of the table."""
    return [_row(str(key[0]), str(key[1]), str(key[2]), own) for key, own in table.groupby(_KEYS, sort=False)]


def _row(name: str, order: str, rounding: str, own: pd.DataFrame) -> Row:
    medians: dict[str, Any] = {column: float(own[column].median()) for column in _MEDIANS}
    worst, site = math.nan, ""
    correlations = own[WORST].to_numpy(float)
    if np.isfinite(correlations).any():
        at = int(np.nanargmin(correlations))
        worst, site = float(correlations[at]), str(own["site"].iloc[at])
    about: dict[str, Any] = {"format": name, "order": order, "rounding": rounding, "linears": len(own)}
    return Row(**about, **medians, worst=site, worst_correlation=worst)


def stated(claims: Mapping[str, Any], subjects: Sequence[str]) -> list[Claim]:
    """The claims by their names that are about formats that are measured.

    subjects: every FORMAT:ORDER:ROUNDING that is measured. Raises InputError for a claim that is malformed, about
    something else, or whose subject has no format, order and rounding.
    """
    found = []
    measured = {subject.partition(":")[0] for subject in subjects}
    for name, entries in claims.items():
        claim = Claim.from_dict({"id": str(name), **entries})
        if claim.metric not in SURVIVAL:
            raise InputError(
                f"Claim {claim.id}: metric {claim.metric} is that of a run. {nearest(claim.metric, SURVIVAL)}"
            )
        parts = claim.subject.split(":")
        if len(parts) != 3:
            raise InputError(
                f"Claim {claim.id}: subject is {claim.subject!r}, expected FORMAT:ORDER:ROUNDING, "
                "such as affine4:after:nearest"
            )
        if claim.bound is None:
            raise InputError(
                f"Claim {claim.id}: expected bound, a number that the median over linears is compared with"
            )
        if claim.subject in subjects:
            found.append(claim)
        elif parts[0] in measured:
            raise InputError(
                f"Claim {claim.id}: subject {claim.subject!r} is not measured. {nearest(claim.subject, subjects)}"
            )
    return found


def judge(claim: Claim, table: pd.DataFrame) -> Verdict:
    """The verdict on a claim by its metric at all linears where it is defined."""
    name, order, rounding = claim.subject.split(":")
    own = table[(table["format"] == name) & (table["order"] == order) & (table["rounding"] == rounding)]
    values = _values(own, claim.metric)
    values = values[np.isfinite(values)]
    if not len(values) or claim.bound is None:
        return Verdict(INCONCLUSIVE, math.nan, reason=f"nothing was measured of {claim.subject}")
    if (values <= 0).any():
        return Verdict(INCONCLUSIVE, float(np.median(values)), reason="a value is not above 0, so that no ratio exists")
    ratio = paired_ratio(values, np.full(len(values), claim.bound))
    effect, lo, hi = (each * claim.bound for each in (ratio.estimate, ratio.lo, ratio.hi))
    if math.isnan(lo):
        return Verdict(INCONCLUSIVE, effect, reason=f"too few linears: {len(values)}, expected at least 2")
    return Verdict(decide(claim.relation, ratio.lo, ratio.hi, claim.margin), effect, lo, hi)


def _values(table: pd.DataFrame, metric: str) -> np.ndarray:
    if metric == "unchanged_codes":
        return 1 - table["changed_codes"].to_numpy(float)
    return table[SURVIVAL[metric]].to_numpy(float)
