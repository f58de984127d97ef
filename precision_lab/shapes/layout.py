"""The positions and sizes of a scene's objects.

With these numbers, large objects stay at least 3 % of the shorter side apart, and 3.5 % away from the picture's edge.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from precision_lab.shapes.scenes import Scene

RADII = {"small": 0.076, "medium": 0.1, "large": 0.131}
"""Radius by size, as a fraction of the shorter side: each is about 1.3 times the previous one."""
ANCHORS = {"left": (0.22, 0.5), "right": (0.78, 0.5), "top": (0.5, 0.22), "bottom": (0.5, 0.78), "center": (0.5, 0.5)}
"""Centre of the group by position: (x, y) as fractions of width and height."""
SPACING = 0.31
"""Distance between neighbours, as a fraction of the width for a row or of the height for a column."""
COMMON_JITTER = 0.015
"""Largest shift of the whole group along x and along y, as a fraction of the shorter side."""
JITTER_ALONG = 0.008
"""Largest shift of each object along its row or column, as a fraction of the shorter side."""
JITTER_ACROSS = 0.02
"""Largest shift of each object across its row or column, as a fraction of the shorter side."""


def size_name(scene: Scene) -> str:
    """The size of the scene's objects, a key of `RADII`."""
    return scene.size or "medium"


def position_name(scene: Scene) -> str:
    """The position of the scene's group, a key of `ANCHORS`."""
    return scene.position or "center"


def centers(scene: Scene, height: int, width: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """The centres (x, y) of the scene's objects in pixels, (count, 2): a column at left or right, else a row."""
    extent = np.array([width, height])
    along = 1 if scene.position in ("left", "right") else 0
    offsets = np.zeros((scene.count, 2))
    offsets[:, along] = SPACING * (np.arange(scene.count) - (scene.count - 1) / 2)
    limits = np.full(2, JITTER_ACROSS)
    limits[along] = JITTER_ALONG
    jitter = rng.uniform(-1, 1, (scene.count, 2)) * limits + rng.uniform(-1, 1, 2) * COMMON_JITTER
    return (ANCHORS[position_name(scene)] + offsets) * extent + jitter * extent.min()
