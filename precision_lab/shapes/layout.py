"""Positions and sizes of the objects in a scene.

The constants leave 3 % of the shorter side between the largest objects, and 3.5 % between them and the picture's edge.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from precision_lab.shapes.scenes import Scene

RADII = {"small": 0.076, "medium": 0.1, "large": 0.131}
"""Radius by size, in units of the shorter side; each is 1.3 times the previous one."""
ANCHORS = {"left": (0.22, 0.5), "right": (0.78, 0.5), "top": (0.5, 0.22), "bottom": (0.5, 0.78), "center": (0.5, 0.5)}
"""Centre (x, y) of the group by position, in units of width and height."""
SPACING = 0.31
"""Distance between neighbours, in units of the width for a row and of the height for a column."""
COMMON_JITTER = 0.015
"""Largest shift of the whole group along x and along y, in units of the shorter side."""
JITTER_ALONG = 0.008
"""Largest additional shift of each object along the row or column, in units of the shorter side."""
JITTER_ACROSS = 0.02
"""Largest additional shift of each object across the row or column, in units of the shorter side."""


def size_name(scene: Scene) -> str:
    """The size of the objects, a key of `RADII`."""
    return scene.size or "medium"


def position_name(scene: Scene) -> str:
    """The position of the group, a key of `ANCHORS`."""
    return scene.position or "center"


def centers(scene: Scene, height: int, width: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Centres (x, y) of the objects in pixels, (count, 2); they form a column at left or right, otherwise a row."""
    extent = np.array([width, height])
    along = 1 if scene.position in ("left", "right") else 0
    offsets = np.zeros((scene.count, 2))
    offsets[:, along] = SPACING * (np.arange(scene.count) - (scene.count - 1) / 2)
    limits = np.full(2, JITTER_ACROSS)
    limits[along] = JITTER_ALONG
    jitter = rng.uniform(-1, 1, (scene.count, 2)) * limits + rng.uniform(-1, 1, 2) * COMMON_JITTER
    return (ANCHORS[position_name(scene)] + offsets) * extent + jitter * extent.min()
