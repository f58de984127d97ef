"""Pictures with an alpha channel: what is seen of them, which is what they are compared by.

The colours of a transparent pixel are arbitrary. Compared are therefore the picture over white and over black, and its
opacity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

WHITE, BLACK = 255, 0


def over(image: Pixels, background: Pixels | int) -> Pixels:
    """An RGBA picture (height, width, 4), not premultiplied, over a background: (height, width, 3), rounded.

    background: a grey level, or a picture (height, width, 3) or (height, width, 1).
    """
    alpha = image[..., 3:].astype(np.float64) / 255
    mixed: npt.NDArray[Any] = alpha * image[..., :3] + (1 - alpha) * background
    return np.rint(mixed).astype(np.uint8)


def seen(image: Pixels) -> Pixels:
    """The channels by which pictures are compared: (height, width, channels), unchanged unless there are four.

    Of an RGBA picture these are seven: red, green and blue over white, over black, and alpha.
    """
    if image.ndim != 3 or image.shape[2] != 4:
        return image
    return np.concatenate([over(image, WHITE), over(image, BLACK), image[..., 3:]], axis=-1)


def chequered(image: Pixels, side: int = 8) -> Pixels:
    """A picture to show: an RGBA picture over grey squares of `side` pixels, any other unchanged."""
    if image.shape[2] != 4:
        return image
    rows, columns = (np.arange(extent) // side for extent in image.shape[:2])
    squares = np.where((rows[:, None] + columns) % 2, 255, 204)[..., None].astype(np.uint8)
    return over(image, squares)
