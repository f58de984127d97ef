"""How far a picture is displaced from another, in fractions of a pixel: edits that shift what they should keep."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

RESOLUTION = 0.01
"""In pixels."""

LEAST_CORRELATION = 0.5
"""Of the registered pictures; below it they are not taken for one picture that moved."""

NO_MATCH = "no match"


def displacement(image: npt.NDArray[np.uint8], ref: npt.NDArray[np.uint8]) -> float | str:
    """Length of the translation from `ref` to `image` in pixels, a multiple of `RESOLUTION`, or why there is none.

    image, ref: (height, width, channels) of equal shape. The mixture of channels in which `ref` varies most, its first
    principal component, is registered.

    Phase correlation (Kuglin and Hines 1975), refined by an upsampled Fourier transform (Guizar-Sicairos et al. 2008,
    doi:10.1364/OL.33.000156), of the pictures in a Hann window, since pictures do not continue at the opposite edge.
    Lower is nearer; `no match` for pictures that show something else, and for constant ones.
    """
    from skimage.registration import phase_cross_correlation

    if np.array_equal(image, ref):
        return 0.0
    windows = [np.sin(np.pi * (np.arange(extent) + 0.5) / extent) ** 2 for extent in ref.shape[:2]]
    window = np.outer(*windows)
    colours = ref.reshape(-1, ref.shape[-1]).astype(np.float64)
    _, directions = np.linalg.eigh(np.atleast_2d(np.cov(colours, rowvar=False)))
    planes = [each @ directions[:, -1] for each in (image, ref)]
    if min(float(np.ptp(plane)) for plane in planes) < 0.5:  # levels: constant but for the arithmetic
        return NO_MATCH
    moved, still = (window * (plane - plane.mean()) for plane in planes)
    _, error, _ = phase_cross_correlation(still, moved, normalization=None)
    if 1 - float(error) ** 2 < LEAST_CORRELATION**2:  # error^2 = 1 - correlation^2
        return NO_MATCH
    shift, _, _ = phase_cross_correlation(still, moved, upsample_factor=round(1 / RESOLUTION))
    return math.hypot(*map(float, shift))
