"""The outlines of the five shapes, and the share of each pixel that they cover.

Coordinates are those of pictures: x to the right, y down. A shape of radius 1 lies in the square [-1, 1]^2, and its
bounding box is centred on the origin. The proportions make the five shapes look equally large.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]

SHAPES = ("circle", "square", "triangle", "star", "cross")
SCANLINES = 8
"""Number of scanlines at which a row of pixels is sampled; coverage along a scanline is exact."""


def _star(outer: float, inner: float) -> Points:
    """A five-pointed star (10, 2) with one point up and a centred bounding box."""
    angle = np.arange(10) * math.pi / 5
    radius = np.where(np.arange(10) % 2, inner, outer)
    points = np.stack((radius * np.sin(angle), -radius * np.cos(angle)), axis=1)
    return points - (points.max(axis=0) + points.min(axis=0)) / 2


def _cross(arm: float, half_width: float) -> Points:
    """An upright cross (12, 2) with four arms of length `arm`."""
    a, b = arm, half_width
    corners = [(b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]
    return np.array([*corners, (-b, -a)])


POLYGONS: dict[str, Points] = {
    "square": 0.88 * np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]),
    "triangle": np.array([(0.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]) * (1, math.sqrt(3) / 2),
    "star": _star(outer=1.05, inner=0.46),
    "cross": _cross(arm=0.98, half_width=0.36),
}
"""Vertices (n, 2) of all shapes except the circle, clockwise on the screen."""


class Edges(NamedTuple):
    """The edges of a polygon that are not horizontal, as x = intercept + slope * y between two heights."""

    top: Points  # (edges, 1), like bottom, to broadcast over heights
    bottom: Points
    intercept: Points  # (edges,), like slope and sign
    slope: Points
    sign: Points  # +1 if the inside is to the right of the edge, -1 if it is to the left


def _edges(points: Points) -> Edges:
    next_points = np.roll(points, -1, axis=0)
    sloped = points[:, 1] != next_points[:, 1]
    (x0, y0), (x1, y1) = points[sloped].T, next_points[sloped].T
    slope = (x1 - x0) / (y1 - y0)
    top, bottom = np.minimum(y0, y1)[:, None], np.maximum(y0, y1)[:, None]
    return Edges(top, bottom, x0 - slope * y0, slope, np.sign(y0 - y1))  # a clockwise outline rises on the left


EDGES = {shape: _edges(points) for shape, points in POLYGONS.items()}


def area(shape: str) -> float:
    """The area of the shape of radius 1, by the shoelace formula for polygons."""
    if shape == "circle":
        return math.pi
    x, y = POLYGONS[shape].T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def centroid(shape: str) -> tuple[float, float]:
    """The centre of mass (x, y) of the shape of radius 1; for triangle and star it is not the bounding box's centre."""
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
    """The share of each pixel (height, width) that the shape covers, 0 to 1; the shape must lie entirely inside.

    `center` (x, y) and `radius` are in pixels; pixel (row, column) is the square [column, column + 1] x [row, row + 1].
    On each scanline, a crossing into the shape adds +1 to everything on its right, and a crossing out of it adds -1.
    The cumulative sum over columns is the coverage (the accumulation buffer of font rasterisers).
    """
    v = (np.arange(height * SCANLINES) + 0.5) / SCANLINES
    line, x, sign = _crossings(shape, (v - center[1]) / radius)
    x = center[0] + radius * x
    column = x.astype(np.intp)
    here = sign * (column + 1 - x)  # the part to the right of the crossing; the next pixel gets the rest
    stride = width + 2  # a crossing on the right edge writes two columns beyond it
    index = line // SCANLINES * stride + column
    steps = np.bincount(index, here, minlength=height * stride)
    steps[1:] += np.bincount(index, sign - here, minlength=height * stride)[:-1]
    return steps.reshape(height, stride)[:, :width].cumsum(axis=1) / SCANLINES


def _crossings(shape: str, v: Points) -> tuple[npt.NDArray[np.intp], Points, Points]:
    """Crossings of the lines y = v (n,) with the outline: index of the line, x, and +1 (entering) or -1 (leaving)."""
    if shape == "circle":
        line = np.flatnonzero(np.abs(v) < 1)
        half_chord = np.sqrt(1 - v[line] ** 2)
        sign = np.ones(line.size)
        return np.tile(line, 2), np.concatenate((-half_chord, half_chord)), np.concatenate((sign, -sign))
    edges = EDGES[shape]
    edge, line = np.nonzero((edges.top < v) & (v <= edges.bottom))
    return line, edges.intercept[edge] + v[line] * edges.slope[edge], edges.sign[edge]
