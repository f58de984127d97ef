"""Interval estimates of ratios, and verdicts based on them.

A verdict depends on an interval, never on a point estimate. A bound that cannot be estimated is NaN, and the verdict is
then inconclusive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

RESAMPLES = 10_000
"""Bootstrap resamples: at a confidence of 0.995 about 25 of them lie beyond each end."""

LatencyVerdict = Literal["slower", "faster", "equivalent", "inconclusive"]


@dataclass(frozen=True)
class Ratio:
    """A ratio subject / baseline with its confidence interval [lo, hi]; 1 means no difference, NaN undefined."""

    estimate: float
    lo: float
    hi: float

    @property
    def half_width(self) -> float:
        return (self.hi - self.lo) / 2


def paired_ratio(
    subject: npt.ArrayLike, baseline: npt.ArrayLike, confidence: float = 0.95, seed: int | None = 0
) -> Ratio:
    """The median of subject[i] / baseline[i] over rounds i, with its percentile bootstrap interval.

    `subject` and `baseline` are (n,) positive measurements, one pair per round: a slowdown of a whole round cancels.
    Rounds are resampled with replacement (Efron and Tibshirani 1993, chapter 13) by a generator seeded with `seed`.
    The interval cannot extend beyond the smallest and largest ratio: with fewer than 6 rounds it covers less than 95 %.
    In simulations, 10 rounds cover 95 % at a nominal 95 %, but 98 % at a nominal 99.5 %; 40 rounds cover 99 %.

    With one round, lo and hi are NaN. With no rounds, or if a measurement is not positive and finite, all three are.
    """
    assert 0 < confidence < 1
    ratios = _ratios(subject, baseline)
    if ratios.size < 2:
        return Ratio(float(ratios[0]) if ratios.size else math.nan, math.nan, math.nan)
    rounds = np.random.default_rng(seed).integers(ratios.size, size=(RESAMPLES, ratios.size))
    medians = np.median(ratios[rounds], axis=1)
    tail = (1 - confidence) / 2
    lo, hi = np.quantile(medians, (tail, 1 - tail))
    return Ratio(float(np.median(ratios)), float(lo), float(hi))


def geometric_mean_ratio(subject: npt.ArrayLike, baseline: npt.ArrayLike, confidence: float = 0.95) -> Ratio:
    """The geometric mean of subject[i] / baseline[i] over pairs i, with Student's t interval of the mean log ratio.

    `subject` and `baseline` are (n,) positive numbers, such as the errors of two variants for the same prompts and
    seeds. Errors span orders of magnitude, so their logarithms are closer to a normal distribution. A bootstrap over so
    few pairs would give an interval that is too narrow.

    With one pair, lo and hi are NaN. With no pairs, or if a number is not positive and finite (an error of zero has no
    logarithm), all three are.
    """
    assert 0 < confidence < 1
    logs = np.log(_ratios(subject, baseline))
    if not logs.size:
        return Ratio(math.nan, math.nan, math.nan)
    mean = float(logs.mean())
    if logs.size < 2:
        return Ratio(math.exp(mean), math.nan, math.nan)
    half_width = float(stdtrit(logs.size - 1, (1 + confidence) / 2) * logs.std(ddof=1)) / math.sqrt(logs.size)
    return Ratio(*(float(np.exp(v)) for v in (mean, mean - half_width, mean + half_width)))


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
