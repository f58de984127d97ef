"""Where a scene's objects lie and how large they are.

The numbers leave 3 % of the shorter side between the largest objects, and 3.5 % between these and the picture's edge.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from precision_lab.shapes.scenes import Scene

RADII = {"small": 0.076, "medium": 0.1, "large": 0.131}
"""Radius by size, in shorter sides: each 1.3 times the one before."""
ANCHORS = {"left": (0.22, 0.5), "right": (0.78, 0.5), "top": (0.5, 0.22), "bottom": (0.5, 0.78), "center": (0.5, 0.5)}
"""The group's middle by position: (x, y) in widths and heights."""
SPACING = 0.31
"""Between neighbours, in widths for a row or in heights for a column."""
COMMON_JITTER = 0.015
"""Largest shift of the whole group along x and along y, in shorter sides; so the next two, of each object."""
JITTER_ALONG = 0.008
JITTER_ACROSS = 0.02


def size_name(scene: Scene) -> str:
    """A key of `RADII`."""
    return scene.size or "medium"


def position_name(scene: Scene) -> str:
    """A key of `ANCHORS`."""
    return scene.position or "center"


def centers(scene: Scene, height: int, width: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """The middles of the scene's objects, (count, 2) of (x, y) in pixels: a column at left or right, else a row."""
    extent = np.array([width, height])
    along = 1 if scene.position in ("left", "right") else 0
    offsets = np.zeros((scene.count, 2))
    offsets[:, along] = SPACING * (np.arange(scene.count) - (scene.count - 1) / 2)
    limits = np.full(2, JITTER_ACROSS)
    limits[along] = JITTER_ALONG
    jitter = rng.uniform(-1, 1, (scene.count, 2)) * limits + rng.uniform(-1, 1, 2) * COMMON_JITTER
    return (ANCHORS[position_name(scene)] + offsets) * extent + jitter * extent.min()
