"""The share of an effect that arrives, and lines that are added to pictures."""

import numpy as np
import pytest

from experiments.fp8_lightning.grids import with_lines
from experiments.lora_on_quantised.shares import Arm, share_and_noise
from precision_lab.numerics.grid import PERIODS, grid_energy


@pytest.mark.parametrize("share", [-0.3, 0.0, 0.5, 1.2])
def test_the_share_is_the_part_along_the_effect_and_noise_the_rest(share):
    rng = np.random.default_rng(round(100 * share) % 97)
    effect, other = rng.standard_normal((2, 8, 64))
    other -= effect * (other.ravel() @ effect.ravel()) / (effect.ravel() @ effect.ravel())
    other *= 0.7 * np.linalg.norm(effect) / np.linalg.norm(other)
    assert share_and_noise(share * effect + other, effect) == pytest.approx((share, 0.7))


def test_variants_are_read_as_formats_ways_and_strengths():
    assert Arm.of("fp8_channel_after_stochastic") == Arm(
        "fp8_channel_after_stochastic", "fp8_channel", "after_stochastic", 1
    )
    assert Arm.of("affine4_after_half") == Arm("affine4_after_half", "affine4", "after", 0.5)
    assert [Arm.of(name) for name in ("affine4", "affine4_live_twin", "plain_half", "baseline", "reference")] == [
        None
    ] * 5


@pytest.mark.parametrize("period", PERIODS)
def test_added_lines_are_a_grid_of_their_period(period):
    rng = np.random.default_rng(period)
    image = rng.integers(60, 190, (128, 128, 3)).astype(np.uint8)
    noisy = (image + rng.integers(-2, 3, image.shape)).astype(np.uint8)
    plain, lined = grid_energy(noisy, image), grid_energy(with_lines(noisy, period, 4.0), image)
    assert lined[period] > 5 * plain[period]
    np.testing.assert_array_equal(with_lines(noisy, period, 0.0), noisy)
