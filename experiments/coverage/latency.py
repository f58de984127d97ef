"""Latency: times of two arms in rounds that share the machine's load, and the intervals of their median ratio."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.coverage.claims import CONFIDENCE, covered
from precision_lab.numerics.intervals import median_interval, simultaneous_confidence

Floats = npt.NDArray[np.float64]

ROUNDS = (4, 5, 6, 8, 10, 20, 40)
OUTLIERS = {"no slow rounds": 0.0, "5 % slow rounds": 0.05, "20 % slow rounds": 0.2}
"""The probability that a time is lengthened, by a half in the mean."""
NOISE = 0.02
DRIFT = 0.02
"""Standard deviations of the logarithm of a time: of each sample, and of the load from one round to the next."""
RESAMPLES, BOOTSTRAPPED = 1000, 2000
"""Of the bootstrap, and how many experiments it is tried on: it takes a hundred times as long."""

MARGIN = 0.05
LEAST_ROUNDS, MOST_ROUNDS = (4, 10), 100
STOPPED_NOISE = (0.005, 0.01, 0.02, 0.04)


def log_ratios(rng: np.random.Generator, shape: tuple[int, int], outliers: float, noise: float = NOISE) -> Floats:
    """(replications, rounds) logarithms of the ratio of two arms that take equally long."""
    load = DRIFT * rng.standard_normal(shape).cumsum(axis=1)
    arms = []
    for _ in range(2):
        slow = (rng.random(shape) < outliers) * np.log1p(rng.exponential(0.5, shape))
        arms.append(np.exp(load + noise * rng.standard_normal(shape) + slow))
    return np.log(arms[0] / arms[1])


def cells(replications: int, seed: int) -> list[dict[str, Any]]:
    """Coverage and median half-width in percent, at 95 % alone and as one of four simultaneous intervals."""
    rng = np.random.default_rng(seed)
    found = []
    for name, probability in OUTLIERS.items():
        for rounds in ROUNDS:
            logs = log_ratios(rng, (replications, rounds), probability)
            for intervals in (1, 4):
                confidence = simultaneous_confidence(intervals)
                lo, hi = median_interval(logs, confidence)
                cell: dict[str, Any] = {"outliers": name, "rounds": rounds, "nominal": confidence}
                cell |= {"coverage": covered(lo, hi), "half_width_pct": round(50 * float(np.median(hi - lo)), 2)}
                cell["bootstrap_coverage"] = covered(*_bootstrap(rng, logs[:BOOTSTRAPPED], confidence))
                found.append(cell)
    return found


def stopping(replications: int, seed: int) -> list[dict[str, Any]]:
    """Coverage where timing ends when the half-width is at most half of MARGIN, as a run does (lab/latency.py)."""
    rng = np.random.default_rng(seed)
    found = []
    for noise in STOPPED_NOISE:
        logs = log_ratios(rng, (replications, MOST_ROUNDS), OUTLIERS["5 % slow rounds"], noise)
        for least in LEAST_ROUNDS:
            contained, used = _stopped(logs, range(least, MOST_ROUNDS + 1))
            found.append({"noise": noise, "least_rounds": least, "coverage": contained, "mean_rounds": used})
    return found


def _stopped(logs: Floats, looks: Iterable[int]) -> tuple[float, float]:
    ends, used = np.full((2, len(logs)), np.nan), np.zeros(len(logs))
    for rounds in looks:
        lo, hi = median_interval(logs[:, :rounds], CONFIDENCE)
        narrow = ((np.exp(hi) - np.exp(lo)) / 2 <= MARGIN / 2) | (rounds == MOST_ROUNDS)
        now = narrow & (used == 0)
        ends[:, now], used[now] = (lo[now], hi[now]), rounds
    return covered(*ends), round(float(used.mean()), 1)


def _bootstrap(rng: np.random.Generator, logs: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Percentiles of the medians of resampled rounds (Efron and Tibshirani 1993, chapter 13)."""
    tail = (1 - confidence) / 2
    ends = np.empty((2, len(logs)))
    for at, own in enumerate(logs):
        medians = np.median(own[rng.integers(own.size, size=(RESAMPLES, own.size))], axis=1)
        ends[:, at] = np.quantile(medians, (tail, 1 - tail))
    return ends[0], ends[1]
