"""Whether a picture shows the intended scene."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from precision_lab.shapes import layout
from precision_lab.shapes.reading import read
from precision_lab.shapes.scenes import Scene

SCORED = ("color", "shape", "background", "count")
"""The attributes that must match for a picture to be correct. Size and position are only reported."""


def verdict(scene: Scene, image: npt.NDArray[np.uint8]) -> dict[str, bool]:
    """Whether each attribute read from the uint8 picture (height, width, 3 or 4) matches; unreadable is False."""
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
    """Whether the uint8 picture (height, width, 3 or 4) matches the scene in all attributes of `SCORED`."""
    matches = verdict(scene, image)
    return all(matches[name] for name in SCORED)
