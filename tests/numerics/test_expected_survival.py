"""The relation of step, share of changed codes and correlation, against a simulated uniform quantiser."""

import numpy as np
import pytest

from precision_lab.numerics.survival import expected, implied_gain


def quantised(weight, step):
    return step * np.rint(weight / step)


@pytest.mark.parametrize("ratio", [3, 12, 50])
def test_a_fixed_grid_does_what_is_expected(ratio):
    rng = np.random.default_rng(ratio)
    n = 1 << 20
    weight, delta = 1000 * rng.random(n), rng.standard_normal(n) / ratio
    arrived = quantised(weight + delta, 1) - quantised(weight, 1)
    found = expected(ratio)
    tolerance = 0.02 if ratio > 3 else 0.04  # at 3 a few weights cross two boundaries
    changed, correlation = (arrived != 0).mean(), np.corrcoef(arrived, delta)[0, 1]
    assert changed == pytest.approx(found.changed, rel=tolerance)
    assert correlation == pytest.approx(found.correlation, rel=tolerance)
    assert arrived @ delta / (delta @ delta) == pytest.approx(found.gain, rel=tolerance)
    error = np.sqrt(((arrived - delta) ** 2).mean()) * ratio
    assert error == pytest.approx(found.relative_error, rel=tolerance)
    assert implied_gain(ratio, changed, correlation) == pytest.approx(1, rel=tolerance)


def test_at_twelve_times_the_change_a_fixed_grid_changes_a_fifteenth_of_the_codes():
    """Of 80 % unchanged and a correlation of 0.22, neither follows from the step alone."""
    found = expected(12)
    assert found.changed == pytest.approx(0.0665, abs=1e-4)
    assert found.correlation == pytest.approx(0.323, abs=1e-3)
    assert implied_gain(12, 0.2, 0.22) == pytest.approx(1.18, abs=0.01)


def test_what_lies_on_the_grid_loses_a_small_change_whole():
    """Fused after: decoded weights are multiples of the step, and a change below half a step moves none of them."""
    rng = np.random.default_rng(1)
    weight = quantised(1000 * rng.random(100_000), 1)
    assert (quantised(weight + rng.standard_normal(100_000) / 12, 1) == weight).all()


def test_a_ratio_below_three_is_refused():
    for ratio in (2.9, float("nan")):
        with pytest.raises(ValueError, match="at least 3"):
            expected(ratio)
