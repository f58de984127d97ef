"""The study of coverage measures the intervals that verdicts use, and its committed results are those of the code."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.coverage import claims, latency
from experiments.coverage.__main__ import study
from precision_lab.numerics.intervals import geometric_mean_ratio, mean_interval

COMMITTED = Path(__file__).parents[2] / "results" / "reference" / "cpu" / "coverage" / "summary.json"


@pytest.mark.parametrize("distribution", claims.DISTRIBUTIONS)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_prompts_have_the_stated_share_of_the_variance(distribution, share):
    logs = claims.log_ratios(np.random.default_rng(0), distribution, 200_000, 2, 2, share)
    assert logs.mean() == pytest.approx(0, abs=0.01)
    spread = 0.2 if distribution == "t3" else 0.02  # whose fourth moment is infinite
    assert logs.var() == pytest.approx(1, abs=spread)
    assert np.mean(logs[:, 0, 0] * logs[:, 0, 1]) == pytest.approx(share, abs=spread)
    assert np.mean(logs[:, 0, 0] * logs[:, 1, 0]) == pytest.approx(0, abs=0.02)


def test_the_interval_studied_is_that_of_claims():
    logs = claims.log_ratios(np.random.default_rng(1), "t3", 5, 4, 3, 0.5)
    lo, hi = mean_interval(logs.mean(axis=-1), 0.95)
    for at in range(5):
        found = geometric_mean_ratio(np.exp(logs[at].ravel()), np.ones(12), np.repeat(range(4), 3))
        assert (found.lo, found.hi) == pytest.approx((np.exp(lo[at]), np.exp(hi[at])))


def test_arms_of_the_study_are_equally_fast_and_share_the_load():
    logs = latency.log_ratios(np.random.default_rng(0), (20_000, 5), 0.0)
    assert logs.mean() == pytest.approx(0, abs=1e-3)
    assert logs.std() == pytest.approx(2**0.5 * latency.NOISE, rel=0.02)


def test_the_committed_coverage_meets_the_target_where_logarithms_are_symmetric():
    found = json.loads(COMMITTED.read_text())
    assert found["replications"] >= 10_000
    designs = {(cell["prompts"], cell["seeds"]) for cell in found["claims"]}
    assert designs >= {(4, 1), (4, 2), (4, 3), (8, 1), (12, 1)}
    for cell in found["claims"]:
        if cell["distribution"] in ("normal", "t3"):
            assert 0.93 <= cell["prompts_coverage"] <= 0.98, cell
    assert all(cell["coverage"] >= cell["nominal"] - 0.01 for cell in found["latency"])


def test_a_small_study_agrees_with_the_committed_one(monkeypatch):
    monkeypatch.setattr(latency, "BOOTSTRAPPED", 20)
    monkeypatch.setattr(latency, "MOST_ROUNDS", 20)
    small, committed = study(2000, 5), json.loads(COMMITTED.read_text())
    for key, name in (("claims", "prompts_coverage"), ("claims", "cases_coverage"), ("latency", "coverage")):
        own, theirs = (np.array([cell[name] for cell in found[key]]) for found in (small, committed))
        assert np.abs(own - theirs).max() < 5 * (0.25 / 2000) ** 0.5
    json.dumps(small, allow_nan=False)
