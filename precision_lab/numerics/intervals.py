"""Interval estimates of ratios, and verdicts based on them.

A verdict depends on an interval, never on a point estimate. A bound that cannot be estimated is NaN, and the verdict is
then inconclusive. The coverage of both intervals is simulated in experiments/coverage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

LEAST_GROUPS = 3
"""The fewest groups that have an interval: with two, Student's t multiplies the standard error by 12.7."""

LatencyVerdict = Literal["slower", "faster", "equivalent", "inconclusive"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """A ratio subject / baseline with its confidence interval [lo, hi]; 1 means no difference, NaN undefined."""

    estimate: float
    lo: float
    hi: float

    @property
    def half_width(self) -> float:
        return (self.hi - self.lo) / 2


def paired_ratio(subject: npt.ArrayLike, baseline: npt.ArrayLike, confidence: float = 0.95) -> Ratio:
    """The median of subject[i] / baseline[i] over rounds i, with the `median_interval` of the log ratios.

    `subject` and `baseline` are (n,) positive measurements, one pair per round: a slowdown of a whole round cancels.

    With one round, lo and hi are NaN. With no rounds, or if a measurement is not positive and finite, all three are.
    """
    assert 0 < confidence < 1
    ratios = _ratios(subject, baseline)
    if ratios.size < 2:
        return Ratio(float(ratios[0]) if ratios.size else math.nan, math.nan, math.nan)
    lo, hi = (float(np.exp(end)) for end in median_interval(np.log(ratios), confidence))
    return Ratio(float(np.median(ratios)), lo, hi)


def geometric_mean_ratio(
    subject: npt.ArrayLike, baseline: npt.ArrayLike, groups: npt.ArrayLike, confidence: float = 0.95
) -> Ratio:
    """The geometric mean over groups of subject[i] / baseline[i], with the `mean_interval` of the groups' log ratios.

    `subject` and `baseline` are (n,) positive numbers, such as the errors of two variants in the same cases; `groups`
    are (n,) labels, such as the prompts. The log ratios are averaged in each group first, because the seeds of one
    prompt are alike: treated as independent, they give an interval that is too narrow. Every group has the same weight.

    With fewer than `LEAST_GROUPS`, lo and hi are NaN. With no pairs, or if a number is not positive and finite (an
    error of zero has no logarithm), all three are.
    """
    assert 0 < confidence < 1
    logs = np.log(_ratios(subject, baseline))
    if not logs.size:
        return Ratio(math.nan, math.nan, math.nan)
    _, members = np.unique(np.asarray(groups), return_inverse=True)
    assert members.shape == logs.shape
    means = np.bincount(members, logs) / np.bincount(members)
    estimate = float(np.exp(means.mean()))
    if means.size < LEAST_GROUPS:
        return Ratio(estimate, math.nan, math.nan)
    lo, hi = (float(np.exp(end)) for end in mean_interval(means, confidence))
    return Ratio(estimate, lo, hi)


def mean_interval(x: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Student's t interval (lo, hi), each (...), of the mean over the last axis of x, (..., n) with n of at least 2.

    It covers exactly for independent normal values.
    """
    from scipy.special import stdtrit  # here: its import takes 0.4 s of CPU, and few importers compute an interval

    n = x.shape[-1]
    half_width = stdtrit(n - 1, (1 + confidence) / 2) * x.std(axis=-1, ddof=1) / math.sqrt(n)
    mean = x.mean(axis=-1)
    return mean - half_width, mean + half_width


def median_interval(x: Floats, confidence: float) -> tuple[Floats, Floats]:
    """An interval (lo, hi), each (...), of the median over the last axis of x, (..., n) with n of at least 2.

    The d-th smallest and largest values enclose the median with probability 1 - 2 P(B < d), B binomial (n, 1/2),
    whatever the distribution (the sign test), and a few outliers do not move them. Between the two d whose coverage is
    nearest, the ends are interpolated (Hettmansperger and Sheather 1986, doi:10.1016/0167-7152(86)90021-0).

    With so few values that even their extremes cover less than `confidence` (at 95 %, fewer than 6), it is the
    `mean_interval`, which assumes a symmetric distribution: one outlier widens it and never excludes what the other
    values agree on.
    """
    from scipy.special import bdtr

    n = x.shape[-1]
    covered = 1 - 2 * bdtr(np.arange(n // 2 + 1), n, 0.5)  # of the ends number d = 1, 2, ...; at last 0 or less
    if covered[0] < confidence:
        return mean_interval(x, confidence)
    d = int(np.count_nonzero(covered >= confidence))
    share = (covered[d - 1] - confidence) / (covered[d - 1] - covered[d])
    inner = (n - d) * share / (d + (n - 2 * d) * share)
    ordered = np.sort(x, axis=-1)
    lo = (1 - inner) * ordered[..., d - 1] + inner * ordered[..., d]
    hi = (1 - inner) * ordered[..., n - d] + inner * ordered[..., n - d - 1]
    return lo, hi


def simultaneous_confidence(m: int) -> float:
    """The confidence of each of `m` intervals for a joint confidence of 95 % (Bonferroni): 1 - 0.05 / m."""
    assert m >= 1
    return 1 - 0.05 / m


def latency_verdict(lo: float, hi: float, margin: float) -> LatencyVerdict:
    """The verdict for the interval [lo, hi] of a time ratio subject / baseline. Differences up to `margin` are ignored.

    `slower` if the whole interval is above 1 + margin, `faster` if it is below 1 - margin, `equivalent` if it is within
    the margin; otherwise, and for NaN, `inconclusive`.
    """
    assert margin >= 0
    assert not lo > hi
    if math.isnan(lo) or math.isnan(hi):
        return "inconclusive"
    if lo > 1 + margin:
        return "slower"
    if hi < 1 - margin:
        return "faster"
    if lo >= 1 - margin and hi <= 1 + margin:
        return "equivalent"
    return "inconclusive"


def mad(x: npt.ArrayLike) -> float:
    """The median absolute deviation from the median, in the unit of x, not scaled to a normal's; NaN if empty."""
    values = np.asarray(x, dtype=np.float64)
    return float(np.median(np.abs(values - np.median(values)))) if values.size else math.nan


def _ratios(subject: npt.ArrayLike, baseline: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """subject / baseline, (n,); empty if any measurement is not positive and finite."""
    a, b = np.asarray(subject, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    assert a.ndim == b.ndim == 1
    assert a.shape == b.shape
    valid = (a > 0) & (b > 0) & np.isfinite(a) & np.isfinite(b)
    return a / b if valid.all() else np.zeros(0)
