"""Scores whether a picture shows the requested scene."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from precision_lab.shapes import layout
from precision_lab.shapes.reading import read
from precision_lab.shapes.scenes import Scene

SCORED = ("color", "shape", "background", "count")
"""The attributes of a correct picture. Size and position are only reported, because captions may omit them."""


def verdict(scene: Scene, image: npt.NDArray[np.uint8]) -> dict[str, bool]:
    """Whether each attribute of the uint8 picture (height, width, 3) equals that of the scene.

    An unreadable attribute is wrong. Raises InputError for an array of another dtype or shape.
    """
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
    """Whether the picture is right in all attributes of `SCORED`."""
    right = verdict(scene, image)
    return all(right[name] for name in SCORED)
