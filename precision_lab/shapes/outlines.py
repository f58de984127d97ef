"""The outlines of the five shapes, and how much of each pixel they cover.

Coordinates follow images: x to the right, y down. A shape of radius 1 lies in the square [-1, 1]^2, with the centre of
its bounding box at the origin; the proportions make the five shapes look equally large.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]

SHAPES = ("circle", "square", "triangle", "star", "cross")
SCANLINES = 8
"""Sampling lines per row of pixels; along a line, coverage is exact."""


def _star(outer: float, inner: float) -> Points:
    """The vertices (10, 2) of a five-pointed star with one point up and its bounding box centred."""
    angle = np.arange(10) * math.pi / 5
    radius = np.where(np.arange(10) % 2, inner, outer)
    points = np.stack((radius * np.sin(angle), -radius * np.cos(angle)), axis=1)
    return points - (points.max(axis=0) + points.min(axis=0)) / 2


def _cross(arm: float, half_width: float) -> Points:
    """The vertices (12, 2) of an upright cross with four arms of length `arm`."""
    a, b = arm, half_width
    corners = [(b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]
    return np.array([*corners, (-b, -a)])


POLYGONS: dict[str, Points] = {
    "square": 0.88 * np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]),
    "triangle": np.array([(0.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]) * (1, math.sqrt(3) / 2),
    "star": _star(outer=1.05, inner=0.46),
    "cross": _cross(arm=0.98, half_width=0.36),
}
"""Vertices (n, 2), clockwise on the screen. The circle is not a polygon and is handled separately."""


class Edges(NamedTuple):
    """The edges of a polygon that are not horizontal, as x = intercept + slope * y for y from `top` to `bottom`.

    `top` and `bottom` are (edges, 1), to broadcast against heights; the rest are (edges,). `sign` is +1 where the
    interior begins to the right of the edge, -1 where it ends.
    """

    top: Points
    bottom: Points
    intercept: Points
    slope: Points
    sign: Points


def _edges(points: Points) -> Edges:
    next_points = np.roll(points, -1, axis=0)
    sloped = points[:, 1] != next_points[:, 1]
    (x0, y0), (x1, y1) = points[sloped].T, next_points[sloped].T
    slope = (x1 - x0) / (y1 - y0)
    top, bottom = np.minimum(y0, y1)[:, None], np.maximum(y0, y1)[:, None]
    return Edges(top, bottom, x0 - slope * y0, slope, np.sign(y0 - y1))  # a clockwise outline rises on the left


EDGES = {shape: _edges(points) for shape, points in POLYGONS.items()}


def area(shape: str) -> float:
    """The area of the shape of radius 1 (for polygons, the shoelace formula)."""
    if shape == "circle":
        return math.pi
    x, y = POLYGONS[shape].T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def centroid(shape: str) -> tuple[float, float]:
    """The centre of mass (x, y) of the shape of radius 1; it differs from the origin for triangle and star."""
    if shape == "circle":
        return 0.0, 0.0
    points = POLYGONS[shape]
    next_points = np.roll(points, -1, axis=0)
    cross = points[:, 0] * next_points[:, 1] - points[:, 1] * next_points[:, 0]
    x, y = cross @ (points + next_points) / (3 * cross.sum())
    return float(x), float(y)


def coverage(
    shape: str, center: tuple[float, float], radius: float, height: int, width: int
) -> npt.NDArray[np.float64]:
    """The fraction of each pixel that the shape covers, (height, width), 0 to 1; the whole shape must lie inside.

    `center` (x, y) and `radius` are in pixels; pixel (row, column) is the square [column, column + 1] x [row, row + 1].
    Each crossing of a scanline adds +1 to its right where it enters the shape, -1 where it leaves; the cumulative sum
    along a row is the coverage (the accumulation buffer of font rasterisers).
    """
    v = (np.arange(height * SCANLINES) + 0.5) / SCANLINES
    line, x, sign = _crossings(shape, (v - center[1]) / radius)
    x = center[0] + radius * x
    column = x.astype(np.intp)
    here = sign * (column + 1 - x)  # the part of the crossed pixel right of the crossing; the next pixel gets the rest
    stride = width + 2  # a crossing on the right edge writes up to two columns beyond it
    index = line // SCANLINES * stride + column
    steps = np.bincount(index, here, minlength=height * stride)
    steps[1:] += np.bincount(index, sign - here, minlength=height * stride)[:-1]
    return steps.reshape(height, stride)[:, :width].cumsum(axis=1) / SCANLINES


def _crossings(shape: str, v: Points) -> tuple[npt.NDArray[np.intp], Points, Points]:
    """Where the lines y = v (n,) cross the outline: line index, x, and +1 for entering or -1 for leaving."""
    if shape == "circle":
        line = np.flatnonzero(np.abs(v) < 1)
        half_chord = np.sqrt(1 - v[line] ** 2)
        sign = np.ones(line.size)
        return np.tile(line, 2), np.concatenate((-half_chord, half_chord)), np.concatenate((sign, -sign))
    edges = EDGES[shape]
    edge, line = np.nonzero((edges.top < v) & (v <= edges.bottom))
    return line, edges.intercept[edge] + v[line] * edges.slope[edge], edges.sign[edge]
