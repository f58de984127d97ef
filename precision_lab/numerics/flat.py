"""Grain and colour of the plain areas of a picture: what uniform 4-bit weights add there (mflux issue 484).

Plain areas are found in the reference picture alone, so that the same pixels of every picture are measured. A pixel
belongs to one if the gradient of the reference is at most `STEEPEST` in the whole window of the blur around it. Values
near one that is clipped (0 or 255) are left out, since clipping hides grain. The area is measured in tiles, of which
the median counts: an object that moved into a part of the area changes few tiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BLUR = 2.0
"""Standard deviation of the Gaussian blur in pixels."""

RADIUS = 4
"""The window of the blur has a side of 2 RADIUS + 1 pixels."""

STEEPEST = 2.0
"""Levels of 255 per pixel, of the derivative of a Gaussian of 1 pixel. Edges above 5 levels are steep, and in most
windows so is grain above 3."""

TILE = 16
"""Side of a tile in pixels."""

LEAST = 64
"""Values that a tile must have."""

NO_FLAT_AREA = "no flat area"

Area = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]


def flat_area(ref: npt.NDArray[np.uint8]) -> Area:
    """The values of a reference picture (height, width, channels) that belong to a plain area, of the same shape."""
    from scipy import ndimage

    window = (2 * RADIUS + 1, 2 * RADIUS + 1, 1)
    wide = ref.astype(np.float32)
    gradient = np.hypot(*(ndimage.gaussian_filter(wide, (1, 1, 0), order) for order in ((1, 0, 0), (0, 1, 0))))
    steep = (gradient.max(axis=-1, keepdims=True) > STEEPEST).astype(np.uint8)
    clipped = ((ref == 0) | (ref == 255)).astype(np.uint8)
    area: Area = (ndimage.maximum_filter(steep, window) == 0) & (ndimage.maximum_filter(clipped, window) == 0)
    for edge in (slice(None, RADIUS), slice(-RADIUS, None)):  # where the blur would look outside of the picture
        area[edge] = area[:, edge] = False
    return area


def grain(image: npt.NDArray[np.uint8], area: Area) -> float | str:
    """Standard deviation of a picture minus its blur in an area, in levels of 255, or why there is none.

    Scaled so that white noise has its own: its residual after the blur, with weights g along an axis, has a variance of
    1 - 2 g(0)^2 + (sum of g^2)^2 times its own. The rounding to 8 bits alone is 0.29. Lower is smoother.
    """
    from scipy import ndimage

    wide = image.astype(np.float64)
    blurred = ndimage.gaussian_filter(wide, (BLUR, BLUR, 0), radius=(RADIUS, RADIUS, 0))
    sums, counts = (part.sum(axis=-1) for part in _tiled((wide - blurred) ** 2, area))
    enough = counts >= LEAST
    if not enough.any():
        return NO_FLAT_AREA
    weights = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / BLUR) ** 2)
    weights /= weights.sum()
    remaining = 1 - 2 * weights[RADIUS] ** 2 + (weights @ weights) ** 2
    return float(np.sqrt(np.median(sums[enough] / counts[enough]) / remaining))


def colour_shift(image: npt.NDArray[np.uint8], ref: npt.NDArray[np.uint8], area: Area) -> float | str:
    """How far the mean colour of an area is from the reference's, in levels of 255, or why there is no such number.

    Root mean square over the channels: d if all of them are shifted by d. Lower is nearer.
    """
    sums, counts = _tiled(image.astype(np.float64) - ref, area)
    enough = counts >= LEAST
    shifts = [np.median(s[e] / c[e]) for s, c, e in zip(*(a.T for a in (sums, counts, enough)), strict=True) if e.any()]
    return float(np.sqrt(np.mean(np.square(shifts)))) if shifts else NO_FLAT_AREA


def _tiled(values: Values, area: Area) -> tuple[Values, npt.NDArray[Any]]:
    """Sum over the area and number of its values, by tile and channel: (tile rows, tile columns, channels)."""

    def summed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        for axis in (0, 1):
            array = np.add.reduceat(array, np.arange(0, array.shape[axis], TILE), axis=axis)
        return array

    return summed(np.where(area, values, 0.0)), summed(area.astype(np.int64))
