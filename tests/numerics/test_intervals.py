from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from precision_lab.numerics.intervals import (
    LEAST_GROUPS,
    Ratio,
    geometric_mean_ratio,
    latency_verdict,
    mad,
    mean_interval,
    median_interval,
    paired_ratio,
    simultaneous_confidence,
)

Estimator = Callable[..., Ratio]


def geometric_mean(subject, baseline, confidence=0.95):
    """Of pairs that are independent."""
    return geometric_mean_ratio(subject, baseline, np.arange(len(subject)), confidence)


both = pytest.mark.parametrize("estimate", [paired_ratio, geometric_mean])


def simulated(n: int, ratio: float = 1.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Times of n rounds: both measurements of a round share its load, and each has its own noise of 3 %."""
    rng = np.random.default_rng(seed)
    load = np.exp(rng.normal(0, 0.3, n))
    return ratio * load * np.exp(rng.normal(0, 0.03, n)), load * np.exp(rng.normal(0, 0.03, n))


def is_nan(ratio: Ratio) -> list[bool]:
    return [math.isnan(v) for v in (ratio.estimate, ratio.lo, ratio.hi)]


# --- ratios ----------------------------------------------------------------------------------------------------------


def test_paired_ratio_by_hand() -> None:
    result = paired_ratio([2, 16, 4], [1, 2, 4])  # log2 ratios 1, 3, 0: mean 4/3, standard error 0.882
    t = 4.30265273  # Student's t, two degrees of freedom, 97.5 %: the extremes of three cover only 75 %
    assert result.estimate == 2
    assert (result.lo, result.hi) == pytest.approx(
        (2 ** (4 / 3 - t * 0.8819171), 2 ** (4 / 3 + t * 0.8819171)), rel=1e-6
    )
    assert paired_ratio([2, 16, 4], [1, 2, 4], 0.75) == Ratio(2, pytest.approx(1), pytest.approx(8))
    assert result.half_width == (result.hi - result.lo) / 2


def test_geometric_mean_ratio_by_hand() -> None:
    # log2 ratios 0 and 2 (first group), 3 and 3, 5: means 1, 3, 5, their mean 3 with a standard error of 2 / sqrt(3)
    result = geometric_mean_ratio([1, 4, 8, 8, 32], np.ones(5), [7, 7, 1, 1, 9])
    t = 4.30265273  # Student's t, two degrees of freedom, 97.5 %
    assert result.estimate == pytest.approx(8)
    assert result.lo == pytest.approx(2 ** (3 - t * 2 / 3**0.5), rel=1e-6)
    assert result.hi == pytest.approx(2 ** (3 + t * 2 / 3**0.5), rel=1e-6)


def test_geometric_mean_ratio_matches_scipys_t_test_of_the_logs() -> None:
    subject, baseline = simulated(9)
    expected = stats.ttest_rel(np.log(subject), np.log(baseline)).confidence_interval(0.99)
    result = geometric_mean(subject, baseline, confidence=0.99)
    assert (math.log(result.lo), math.log(result.hi)) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_groups_in_any_order_and_of_any_label_count_once_each() -> None:
    subject, baseline = simulated(12)
    groups = np.repeat(list("abcd"), 3)
    expected = geometric_mean_ratio(subject, baseline, groups)
    means = np.log(subject / baseline).reshape(4, 3).mean(axis=1)
    other = geometric_mean(np.exp(means), np.ones(4))
    order = np.random.default_rng(3).permutation(12)
    shuffled = geometric_mean_ratio(subject[order], baseline[order], groups[order])
    for found in (other, shuffled):
        assert (found.estimate, found.lo, found.hi) == pytest.approx((expected.estimate, expected.lo, expected.hi))


@pytest.mark.parametrize("groups", range(1, LEAST_GROUPS + 2))
def test_few_groups_have_an_estimate_alone(groups: int) -> None:
    result = geometric_mean_ratio(np.full(4 * groups, 2.0), np.ones(4 * groups), np.repeat(np.arange(groups), 4))
    assert is_nan(result) == [False, groups < LEAST_GROUPS, groups < LEAST_GROUPS]


@pytest.mark.parametrize(("n", "d"), [(9, 2), (17, 5), (30, 10), (60, 22)])
def test_the_median_interval_lies_between_two_order_statistics_whose_coverage_is_binomial(n: int, d: int) -> None:
    x = np.sort(np.random.default_rng(n).standard_normal(n))
    outer, inner = (1 - 2 * stats.binom.cdf(k - 1, n, 0.5) for k in (d, d + 1))
    assert inner < 0.95 <= outer
    lo, hi = median_interval(x, 0.95)
    assert x[d - 1] <= lo <= x[d]
    assert x[n - d - 1] <= hi <= x[n - d]
    exact = median_interval(x, float(outer))
    assert exact == pytest.approx((x[d - 1], x[n - d]))


@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_intervals_of_many_samples_at_once_are_those_of_each(confidence: float) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, 11))
    for interval in (mean_interval, median_interval):
        lo, hi = interval(x, confidence)
        assert lo.shape == hi.shape == (3, 5)
        assert (lo[2, 3], hi[2, 3]) == pytest.approx(interval(x[2, 3], confidence))


@pytest.mark.parametrize("n", [4, 5, 6, 8, 10, 40])
@pytest.mark.parametrize("slow", [1.5, 4.0, 100.0])
def test_one_slow_round_is_no_slower_machine(n: int, slow: float) -> None:
    subject, baseline = simulated(n, ratio=1.0)
    subject[n // 2] *= slow
    assert paired_ratio(subject, baseline).lo < 1.02


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


@pytest.mark.parametrize("n", [4, 6, 7, 10, 16])
def test_coverage_on_simulated_rounds(n: int) -> None:
    """Vectorised; one call in many is compared with the function that takes times."""
    rounds = [simulated(n, ratio=1.1, seed=seed) for seed in range(4000)]
    logs = np.log([subject / baseline for subject, baseline in rounds])
    for interval, estimate in ((median_interval, paired_ratio), (mean_interval, geometric_mean)):
        lo, hi = interval(logs, 0.95)
        covered = np.mean((lo <= math.log(1.1)) & (hi >= math.log(1.1)))
        assert 0.938 <= covered <= 0.962  # 95 %, and 3.5 standard deviations of 4,000 trials
        found = estimate(*rounds[7])
        assert (math.log(found.lo), math.log(found.hi)) == pytest.approx((lo[7], hi[7]))


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
