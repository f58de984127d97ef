"""Whether a picture shows the scene it should."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from precision_lab.shapes import layout
from precision_lab.shapes.reading import read
from precision_lab.shapes.scenes import Scene

SCORED = ("color", "shape", "background", "count")
"""The attributes that make a picture correct. Size and position are reported, but a caption need not state them."""


def verdict(scene: Scene, image: npt.NDArray[np.uint8]) -> dict[str, bool]:
    """For each attribute whether the picture (height, width, 3), uint8, reads as the scene's; unreadable is wrong."""
    reading = read(image)
    expected = {
        "background": scene.background,
        "color": scene.color,
        "shape": scene.shape,
        "count": scene.count,
        "size": layout.size_name(scene),
        "position": layout.position_name(scene),
    }
    return {name: getattr(reading, name) == value for name, value in expected.items()}


def correct(scene: Scene, image: npt.NDArray[np.uint8]) -> bool:
    """Whether the picture is right in all of `SCORED`."""
    right = verdict(scene, image)
    return all(right[name] for name in SCORED)
