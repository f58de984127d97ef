"""Measures of pictures by closed forms: planted grain, grids, shifts, and what they must not react to."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.numerics import grid
from precision_lab.numerics.alpha import seen
from precision_lab.numerics.displacement import NO_MATCH, displacement
from precision_lab.numerics.flat import NO_FLAT_AREA, colour_shift, flat_area, grain
from precision_lab.numerics.perceptual import _network
from precision_lab.numerics.pictures import MEASURES, Pair

GREY = (96, 128, 160)


def bits(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def plain(height=128, width=160, disc=True):
    """A plain picture with a disc of another colour."""
    picture = np.full((height, width, 3), GREY, float)
    y, x = np.mgrid[:height, :width]
    if disc:
        picture[np.hypot(y - height / 2, x - 60) < 24] = (214, 48, 49)
    return bits(picture)


def noisy(picture, sigma, seed=0):
    return bits(picture + sigma * np.random.default_rng(seed).standard_normal(picture.shape))


@pytest.mark.parametrize("sigma", [1.0, 2.5, 7.4])
@pytest.mark.parametrize("seed", [0, 1])
def test_grain_is_the_sigma_that_was_planted(sigma, seed):
    """With that of rounding, 1 / 12; the statistical error of some 40 tiles of 768 values is below 1 %."""
    ref = plain()
    area = flat_area(ref)
    assert grain(noisy(ref, sigma, seed), area) == pytest.approx(math.sqrt(sigma**2 + 1 / 12), rel=0.015)
    assert grain(ref, area) == pytest.approx(0, abs=1e-9)


def test_grain_of_the_reference_does_not_hide_its_plain_areas():
    ref = noisy(plain(), 2.0)
    area = flat_area(ref)
    assert area.mean() > 0.5
    assert grain(ref, area) == pytest.approx(math.sqrt(4 + 1 / 12), rel=0.03)


def test_edges_slopes_and_moved_objects_are_no_grain():
    ref = plain()
    area = flat_area(ref)
    assert not area[30:98, 55:65].all(), "the edge of the disc"
    slope = bits(100 + np.mgrid[:128, :160][1][..., None] * np.array([0.5, 0.25, 0]))
    assert grain(slope, flat_area(slope)) < 0.4
    moved = plain(disc=False)
    moved[20:40, 120:140] = 250
    assert grain(noisy(moved, 2.5), area) == pytest.approx(2.5, rel=0.05)


def test_the_shift_of_a_plain_colour():
    ref = plain()
    area = flat_area(ref)
    assert colour_shift(noisy(ref + 3.0, 5), ref, area) == pytest.approx(3, abs=0.1)
    assert colour_shift(bits(ref + np.array([6.0, 0, 0])), ref, area) == pytest.approx(6 / math.sqrt(3))
    assert colour_shift(noisy(ref, 5), ref, area) < 0.2
    assert colour_shift(ref, ref, area) == 0


def test_pictures_without_a_plain_area():
    stripes = bits(np.full((64, 64, 3), 100.0) + 80 * (np.arange(64) % 6 < 3)[:, None])
    for ref in (stripes, np.full((64, 64, 3), 255, np.uint8), plain()[:8, :8], plain()[:1, :1]):
        assert grain(ref, flat_area(ref)) == colour_shift(ref, ref, flat_area(ref)) == NO_FLAT_AREA


@pytest.mark.parametrize("period", grid.PERIODS)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_sine_of_known_amplitude_stands_out_as_its_formula_says(period, axis):
    """n a^2 / (4 v) over the number of its frequencies, on noise of variance v with the rounding of both pictures."""
    ref, amplitude, extent = plain(), 2.0, (128, 160)[axis]
    line = amplitude * np.sin(2 * np.pi * np.arange(extent) / period)
    wave = line[:, None, None] if axis == 0 else line[None, :, None]
    found = grid.grid_energy(bits(noisy(ref, 0) + wave + np.random.default_rng(3).standard_normal(ref.shape)), ref)
    frequencies = {8: 3, 16: 4, 32: 8}[period]
    variance = 1 + 1 / 12 + 2 / 12
    assert found[period] == pytest.approx(1 + extent * amplitude**2 / (4 * variance) / frequencies, rel=0.15)
    for other in set(grid.PERIODS) - {period}:
        assert found[other] == pytest.approx(1, abs=0.2)


def test_lines_show_at_their_period_and_the_shorter_ones_that_share_its_harmonics():
    ref = plain()
    for period in grid.PERIODS:
        lines = 8.0 * (np.arange(160) % period == 0)[None, :, None]
        found = grid.grid_energy(noisy(ref + lines, 1), ref)
        for other, ratio in found.items():
            assert (ratio > 2) == (other <= period)


def test_what_is_no_grid():
    ref = plain()
    assert grid.grid_energy(ref, ref) == pytest.approx(dict.fromkeys(grid.PERIODS, 1.0))
    for image in (noisy(ref, 7), plain(disc=False), np.roll(ref, 5, axis=1), bits(ref + 9.0)):
        assert all(0.7 < ratio < 1.5 for ratio in grid.grid_energy(image, ref).values())
    period_of_ten = noisy(ref + 4 * np.sin(np.arange(160) * 2 * np.pi / 10)[None, :, None], 1)
    assert all(ratio < 1.5 for ratio in grid.grid_energy(period_of_ten, ref).values())
    assert grid.grid_energy(ref[:63], ref[:63]) == dict.fromkeys(grid.PERIODS, grid.TOO_SMALL)


def shifted(picture, y, x):
    """A picture moved by fractions of a pixel through its Fourier transform."""
    frequencies = [np.fft.fftfreq(extent) for extent in picture.shape[:2]]
    phase = np.exp(-2j * np.pi * (frequencies[0][:, None] * y + frequencies[1] * x))[..., None]
    return np.fft.ifft2(np.fft.fft2(picture, axes=(0, 1)) * phase, axes=(0, 1)).real


@pytest.mark.parametrize("shift", [(0.25, 0.0), (0.0, -0.25), (1.5, -2.25), (5.0, 3.0)])
@pytest.mark.parametrize("sigma", [0.0, 3.0])
def test_a_planted_shift_is_found_in_fractions_of_a_pixel(shift, sigma):
    smooth = np.fft.fftfreq(128)[:, None] ** 2 + np.fft.fftfreq(160) ** 2
    texture = np.fft.ifft2(np.fft.fft2(np.random.default_rng(5).standard_normal((128, 160))) / (smooth + 1e-3)).real
    ref = 120 + 40 * (texture / texture.std())[..., None] * np.array([1.0, 0.5, -0.5])
    ref = np.clip(ref, 20, 235)
    image = noisy(shifted(ref, *shift), sigma)
    assert displacement(image, bits(ref)) == pytest.approx(math.hypot(*shift), abs=0.06)


def test_pictures_at_the_same_place_and_pictures_that_show_something_else():
    ref = plain()
    assert displacement(ref, ref) == 0
    assert displacement(noisy(ref, 10), ref) < 0.05
    rng = np.random.default_rng(2)
    assert displacement(bits(rng.uniform(0, 255, ref.shape)), ref) == NO_MATCH
    assert displacement(plain(disc=False), ref) == NO_MATCH


def test_a_picture_with_alpha_is_measured_by_what_is_seen_of_it():
    """The colours under transparent pixels change nothing; grain in the alpha channel of a half opaque area does."""
    ref = np.dstack([plain(), np.full((128, 160), 128, np.uint8)])
    ref[:, 80:, 3] = 0
    hidden = ref.copy()
    hidden[:, 80:, :3] = 7
    for name in ("flat_grain", "flat_white_drift", "grid_8", "displacement"):
        assert MEASURES[name].measure(Pair(hidden, ref)) == MEASURES[name].measure(Pair(ref, ref))
    grained = ref.copy()
    grained[:, :80, 3] = bits(128 + 5 * np.random.default_rng(0).standard_normal((128, 80)))
    assert MEASURES["flat_grain"].measure(Pair(grained, ref)) > 1
    assert flat_area(seen(ref))[:, 80:].sum() == 0, "clipped over white, over black and in alpha"


def test_lpips_without_its_weights_is_one_line(monkeypatch):
    def offline(**_):
        raise OSError("no network\nand more")

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=offline, im2tensor=None))
    _network.cache_clear()
    with pytest.raises(
        InputError, match=r"^lpips and the weights of AlexNet cannot be loaded: no network\. Load them once[^\n]*$"
    ):
        _network()


def test_flip_of_equal_and_opposite_pictures():
    pytest.importorskip("flip_evaluator")
    from precision_lab.numerics.perceptual import flip, flip_map

    ref = plain()
    assert flip(ref, ref) == 0
    assert flip(np.full_like(ref, 255), np.zeros_like(ref)) > 0.9
    errors = [flip(noisy(ref, sigma), ref) for sigma in (1, 4, 16)]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.5
    assert flip_map(ref, ref).shape == ref.shape[:2]
    half = np.dstack([ref, np.full(ref.shape[:2], 128, np.uint8)])
    other = half.copy()
    other[..., 3] = 255
    both = [flip_map(seen(other)[..., part], seen(half)[..., part]) for part in (slice(3), slice(3, 6))]
    np.testing.assert_array_equal(flip_map(seen(other), seen(half)), np.maximum(*both))
