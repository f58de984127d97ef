"""Grids and seams in a picture: energy at the frequencies of lines every 8, 16 or 32 pixels.

8 pixels are a latent of the VAE, 16 a token of the transformer, 32 a pair of those. fp8 weights with a fused LoRA leave
such grids (Qwen-Image-Lightning issue 32), and so do seams of tiles.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PERIODS = (8, 16, 32)
"""In pixels, each twice the one before: a period has the frequencies that a shorter one does not have."""

NEIGHBOURS = 4
"""The most frequencies on either side that one is compared with."""

TOO_SMALL = "too_small"

_LONGEST = PERIODS[-1]
_ROUNDING = 2 / 12
"""Variance of the difference of two roundings to 8 bits, so that pictures without any difference have a ratio of 1."""

Values = npt.NDArray[np.float64]


def grid_energy(image: npt.NDArray[np.uint8], ref: npt.NDArray[np.uint8]) -> dict[int, float | str]:
    """By period, the energy of image - ref at its frequencies over that of their neighbours; 1 means no grid.

    image, ref: (height, width, channels) of equal shape, cut to multiples of 32 pixels; too_small below 64.

    The power spectrum along rows is the mean over rows and channels, and so for columns. The frequencies of period P
    are k / P below 1/2, those of a shorter period left out: odd k, and every k for the shortest. Each is compared with
    the nearest on both sides that belong to no period, interpolated on logarithms, which is exact for a power law such
    as that of natural pictures. The result is the mean over the frequencies, of rows or columns, whichever is larger. A
    sine of amplitude a at one frequency on white noise of variance v adds n a^2 / (4 v) to its ratio, for n pixels.
    """
    height, width = (extent // _LONGEST * _LONGEST for extent in image.shape[:2])
    if min(height, width) < 2 * _LONGEST:
        return dict.fromkeys(PERIODS, TOO_SMALL)
    difference = image[:height, :width].astype(np.float64) - ref[:height, :width]
    spectra = [_spectrum(difference, axis) for axis in (0, 1)]
    return {period: max(_ratio(spectrum, period) for spectrum in spectra) for period in PERIODS}


def _spectrum(difference: Values, axis: int) -> Values:
    """Power by frequency along an axis, the mean over the others, with that of rounding."""
    extent = difference.shape[axis]
    power = np.abs(np.fft.rfft(difference, axis=axis)) ** 2
    others = tuple(other for other in range(difference.ndim) if other != axis)
    spectrum: Values = power.mean(axis=others) + _ROUNDING * extent
    return spectrum


def _ratio(spectrum: Values, period: int) -> float:
    """The mean over the frequencies of a period of the power over that of the neighbours."""
    spacing = 2 * (len(spectrum) - 1) // _LONGEST  # between frequencies that belong to a period
    reach = np.arange(1, max(1, min(NEIGHBOURS, spacing // 2)) + 1)
    orders = range(1, period // 2, 1 if period == PERIODS[0] else 2)
    ratios = []
    for order in orders:
        at = order * spacing * (_LONGEST // period)
        sides = [np.log([np.exp(np.log(bins).mean()), spectrum[bins].mean()]) for bins in (at - reach, at + reach)]
        (low, low_power), (high, high_power) = sides
        expected = np.interp(np.log(at), [low, high], [low_power, high_power])
        ratios.append(spectrum[at] / np.exp(expected))
    return float(np.mean(ratios))
