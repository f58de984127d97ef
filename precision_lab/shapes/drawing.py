"""Drawing pictures of scenes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from precision_lab.errors import InputError
from precision_lab.shapes import layout
from precision_lab.shapes.outlines import coverage
from precision_lab.shapes.palette import PALETTE
from precision_lab.shapes.scenes import TRANSPARENT, Scene

MIN_SIDE = 32
"""The shortest side in pixels at which the shapes can be distinguished."""


def render(scene: Scene, height: int, width: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draws an antialiased picture of the scene, uint8 sRGB; `rng` jitters the objects.

    The shape is (height, width, 3), or (height, width, 4) with straight alpha if the background is transparent. Then
    alpha is the fraction of the pixel that an object covers, pixels with alpha above 0 have the colour of the objects,
    and all channels of the others are 0. Raises InputError for a side shorter than 32 pixels.
    """
    if min(height, width) < MIN_SIDE:
        raise InputError(f"A picture needs at least {MIN_SIDE} x {MIN_SIDE} pixels, got {height} x {width}")
    color = np.array(PALETTE[scene.color], dtype=np.float32)
    if scene.background == TRANSPARENT:
        image = np.zeros((height, width, 4), dtype=np.uint8)
    else:
        background = np.array(PALETTE[scene.background], dtype=np.float32)
        image = np.empty((height, width, 3), dtype=np.uint8)
        image[:] = np.tile(background.astype(np.uint8), (width, 1))  # several times faster by row than by pixel
    radius = layout.RADII[layout.size_name(scene)] * min(height, width)
    for center in layout.centers(scene, height, width, rng):
        left, top = np.floor(center - radius).astype(int)
        right, bottom = np.ceil(center + radius).astype(int)
        middle = float(center[0] - left), float(center[1] - top)
        alpha = coverage(scene.shape, middle, radius, bottom - top, right - left).astype(np.float32)[..., None]
        if scene.background == TRANSPARENT:
            opacity = np.rint(255 * alpha)
            image[top:bottom, left:right] = np.concatenate((color * (opacity > 0), opacity), axis=-1)
        else:
            image[top:bottom, left:right] = np.rint(background + alpha * (color - background))
    return image
