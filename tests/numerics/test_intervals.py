from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from precision_lab.numerics import intervals
from precision_lab.numerics.intervals import (
    Ratio,
    geometric_mean_ratio,
    latency_verdict,
    mad,
    paired_ratio,
    simultaneous_confidence,
)

Estimator = Callable[..., Ratio]
both = pytest.mark.parametrize("estimate", [paired_ratio, geometric_mean_ratio])


def simulated(n: int, ratio: float = 1.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Times of n rounds: both measurements of a round share its load, and each has its own noise of 3 %."""
    rng = np.random.default_rng(seed)
    load = np.exp(rng.normal(0, 0.3, n))
    return ratio * load * np.exp(rng.normal(0, 0.03, n)), load * np.exp(rng.normal(0, 0.03, n))


def is_nan(ratio: Ratio) -> list[bool]:
    return [math.isnan(v) for v in (ratio.estimate, ratio.lo, ratio.hi)]


# --- ratios ----------------------------------------------------------------------------------------------------------


def test_paired_ratio_by_hand() -> None:
    result = paired_ratio([2, 9, 4], [1, 3, 4])  # ratios 2, 3, 1
    assert (result.estimate, result.lo, result.hi) == (2, 1, 3)
    assert result.half_width == 1


def test_geometric_mean_ratio_by_hand() -> None:
    result = geometric_mean_ratio([2, 8], [1, 1])  # log2 ratios 1 and 3: mean 2, standard error 1
    t = 12.7062047  # Student's t, one degree of freedom, 97.5 %
    assert result.estimate == pytest.approx(4)
    assert result.lo == pytest.approx(2 ** (2 - t), rel=1e-6)
    assert result.hi == pytest.approx(2 ** (2 + t), rel=1e-6)


def test_geometric_mean_ratio_matches_scipys_t_test_of_the_logs() -> None:
    subject, baseline = simulated(9)
    expected = stats.ttest_rel(np.log(subject), np.log(baseline)).confidence_interval(0.99)
    result = geometric_mean_ratio(subject, baseline, confidence=0.99)
    assert (math.log(result.lo), math.log(result.hi)) == pytest.approx((expected.low, expected.high), rel=1e-9)


@both
def test_equal_samples_give_a_ratio_of_one(estimate: Estimator) -> None:
    times = simulated(12)[0]
    assert estimate(times, times) == Ratio(1, 1, 1)


@both
@pytest.mark.parametrize("unit", [1e-12, 1e3, 2.0**40])
def test_the_unit_of_time_does_not_matter(estimate: Estimator, unit: float) -> None:
    subject, baseline = simulated(15)
    plain, scaled = estimate(subject, baseline), estimate(subject * unit, baseline * unit)
    assert (scaled.estimate, scaled.lo, scaled.hi) == pytest.approx((plain.estimate, plain.lo, plain.hi), rel=1e-12)
    slower = estimate(subject * 2, baseline)
    assert (slower.estimate, slower.lo, slower.hi) == pytest.approx((2 * plain.estimate, 2 * plain.lo, 2 * plain.hi))


@both
def test_the_load_of_a_round_cancels(estimate: Estimator) -> None:
    subject, baseline = simulated(15)
    load = np.exp(np.random.default_rng(9).normal(0, 2, 15))
    plain, loaded = estimate(subject, baseline), estimate(subject * load, baseline * load)
    assert (loaded.lo, loaded.hi) == pytest.approx((plain.lo, plain.hi))


@both
def test_more_confidence_is_wider_and_contains_the_estimate(estimate: Estimator) -> None:
    subject, baseline = simulated(20)
    widths = []
    for confidence in (0.5, 0.9, 0.95, 0.995):
        result = estimate(subject, baseline, confidence)
        assert result.lo <= result.estimate <= result.hi
        widths.append(result.half_width)
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


@both
def test_coverage_on_simulated_rounds(estimate: Estimator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 600)
    trials = 400
    covered = 0
    for seed in range(trials):
        result = estimate(*simulated(16, ratio=1.1, seed=seed))
        covered += result.lo <= 1.1 <= result.hi
    assert 0.91 <= covered / trials <= 0.985  # 95 % is 380 of 400, with a standard deviation of 4


def test_the_seed_decides_the_interval() -> None:
    samples = simulated(10)
    assert paired_ratio(*samples, seed=3) == paired_ratio(*samples, seed=3)
    assert paired_ratio(*samples) == paired_ratio(*samples)


@both
def test_one_pair_has_no_interval(estimate: Estimator) -> None:
    result = estimate([3.0], [2.0])
    assert result.estimate == pytest.approx(1.5)
    assert is_nan(result) == [False, True, True]
    assert math.isnan(result.half_width)


@both
def test_nothing_to_estimate_from(estimate: Estimator) -> None:
    assert all(is_nan(estimate([], [])))
    for bad in (0.0, -1.0, math.nan, math.inf):
        assert all(is_nan(estimate([1.0, bad, 2.0], [1.0, 1.0, 1.0])))
        assert all(is_nan(estimate([1.0, 1.0, 1.0], [1.0, bad, 2.0])))


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lo", "hi", "verdict"),
    [
        (1.06, 1.20, "slower"),
        (1.05, 1.20, "inconclusive"),
        (1.03, 1.20, "inconclusive"),
        (0.80, 0.94, "faster"),
        (0.80, 0.95, "inconclusive"),
        (0.80, 1.20, "inconclusive"),
        (0.97, 1.04, "equivalent"),
        (0.95, 1.05, "equivalent"),
        (1.01, 1.02, "equivalent"),
        (1.0, 1.0, "equivalent"),
        (0.94, 1.0, "inconclusive"),
        (math.nan, math.nan, "inconclusive"),
        (1.2, math.nan, "inconclusive"),
        (math.nan, 0.8, "inconclusive"),
        (1.2, math.inf, "slower"),
    ],
)
def test_verdict_table(lo: float, hi: float, verdict: str) -> None:
    assert latency_verdict(lo, hi, margin=0.05) == verdict


def test_swapping_subject_and_baseline_swaps_the_verdict() -> None:
    opposite = {"slower": "faster", "faster": "slower", "equivalent": "equivalent", "inconclusive": "inconclusive"}
    for ratio in (0.8, 1.0, 1.25):
        subject, baseline = simulated(40, ratio)
        ratio_of, inverse = paired_ratio(subject, baseline), paired_ratio(baseline, subject)
        verdict = latency_verdict(ratio_of.lo, ratio_of.hi, 0.03)
        assert latency_verdict(inverse.lo, inverse.hi, 0.03) == opposite[verdict]
        assert verdict == {0.8: "faster", 1.0: "equivalent", 1.25: "slower"}[ratio]


def test_simultaneous_confidence() -> None:
    assert simultaneous_confidence(1) == 0.95
    assert simultaneous_confidence(10) == pytest.approx(0.995)
    with pytest.raises(AssertionError):
        simultaneous_confidence(0)


def test_mad() -> None:
    assert mad([1, 1, 2, 2, 4, 6, 9]) == 1
    assert mad([5.0]) == 0
    assert mad(np.array([3, 8]) * 10) == 25
    assert math.isnan(mad([]))
    assert math.isnan(mad([1, math.nan]))
