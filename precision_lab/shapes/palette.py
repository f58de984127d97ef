"""The eight colours of the world, and the colour nearest to a pixel."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

PALETTE = {
    "red": (214, 48, 49),
    "green": (40, 150, 62),
    "blue": (33, 76, 205),
    "yellow": (250, 204, 44),
    "purple": (168, 50, 158),
    "cyan": (52, 196, 214),
    "white": (248, 248, 246),
    "black": (26, 28, 34),
}
"""8-bit sRGB. The two closest in CIELAB (cyan and white) are 44 apart; a difference of 2.3 is just visible."""

COLORS = tuple(PALETTE)
RGB = np.array(list(PALETTE.values()), dtype=np.float32)
"""The palette as an array (8, 3), 0 to 255, in the order of `COLORS`."""


def nearest_color(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.intp]:
    """The index in `COLORS` of the colour nearest to each pixel (..., 3), sRGB 0 to 255, by distance in CIELAB."""
    lab = _lab(pixels.astype(np.float32))
    distances = [((lab - color) ** 2).sum(axis=-1) for color in _palette_lab()]
    return np.argmin(distances, axis=0)


@cache
def _palette_lab() -> npt.NDArray[np.float32]:
    return _lab(RGB)


def _lab(rgb: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    from skimage.color import rgb2lab

    return rgb2lab(rgb / 255)
