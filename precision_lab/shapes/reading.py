"""Recognising the scene in a picture by classical image processing.

The background is the colour of the border. An object is a connected region of pixels that differ from the background by
more than half as much as the object's colour does, which places a blurred or antialiased edge correctly. The colour of
a region is the most common one in its interior; its shape is the one whose outline, at the same size and place,
overlaps the region best.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from precision_lab.errors import InputError
from precision_lab.shapes.layout import ANCHORS, RADII
from precision_lab.shapes.outlines import SHAPES, area, centroid, coverage
from precision_lab.shapes.palette import COLORS, RGB, nearest_color

BORDER = 0.03
"""Width of the border, as a fraction of the shorter side; no object reaches into it."""
PLAIN_BORDER = 0.8
"""The fraction of the border that must have the background's colour for the background to count as plain."""
SPECKLE = 0.25
"""Regions smaller than this fraction of the world's smallest object are ignored."""
RIM = 2
"""Width in pixels of the rim around a region that may belong to its blurred edge."""
MIN_OVERLAP = 0.55
"""The minimum overlap (intersection over union) with a shape's outline for a region to have that shape."""
MAX_MAGNITUDE = 1.5
"""The radius, relative to that of large objects, above which a region has no shape."""

Mask = npt.NDArray[np.bool_]
T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class Reading:
    """The attributes recognised in a picture; None where an attribute cannot be determined.

    Unlike in a Scene, a medium `size` is "medium" and a central `position` is "center", since None would be ambiguous.
    `count` is 0 for a plain picture, and None if the background is not plain or a region has no shape. Colour and shape
    are those of more than half of the objects.
    """

    background: str | None
    color: str | None
    shape: str | None
    count: int | None
    size: str | None
    position: str | None


@dataclass(frozen=True)
class _Region:
    """A connected region: colour, shape, radius (NaN without a shape), and centre (x, y) as fractions of the extent."""

    color: str
    shape: str | None
    radius: float
    center: tuple[float, float]


def read(image: npt.NDArray[np.uint8]) -> Reading:
    """Recognises the scene in any uint8 picture (height, width, 3). Raises InputError for other dtypes or shapes."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise InputError(f"Expected a uint8 picture of shape (height, width, 3), got {image.dtype} of {image.shape}")
    labels = nearest_color(image)
    background = _background(image, labels)
    if background is None:
        return Reading(None, None, None, None, None, None)
    regions = _regions(image, _foreground(image, labels, background), labels, background)
    if not regions:
        return Reading(COLORS[background], None, None, 0, None, None)
    shape = _majority(region.shape for region in regions)
    return Reading(
        background=COLORS[background],
        color=_majority(region.color for region in regions),
        shape=shape,
        count=len(regions) if all(region.shape for region in regions) else None,
        size=_size(float(np.median([region.radius for region in regions]))) if shape else None,
        position=_position(np.mean([region.center for region in regions], axis=0)),
    )


def _background(image: npt.NDArray[np.uint8], labels: npt.NDArray[np.intp]) -> int | None:
    """The index of the colour nearest to the border's median, or None if too little of the border has that colour."""
    width = max(1, round(BORDER * min(labels.shape)))
    border = np.ones(labels.shape, dtype=bool)
    border[width:-width, width:-width] = False
    background = int(nearest_color(np.median(image[border], axis=0)))
    return background if (labels[border] == background).mean() >= PLAIN_BORDER else None


def _foreground(image: npt.NDArray[np.uint8], labels: npt.NDArray[np.intp], background: int) -> Mask:
    """The mask of object pixels: closer to the commonest object colour than to the background, or of a third colour."""
    not_background = labels != background
    interior = ndimage.binary_erosion(not_background)
    if not interior.any():
        return interior
    color = int(np.bincount(labels[interior]).argmax())
    object_color = np.median(image[interior & (labels == color)], axis=0)
    differs = np.linalg.norm(image - RGB[background], axis=-1) > np.linalg.norm(object_color - RGB[background]) / 2
    # blended edges can resemble a third colour too, but are only a pixel or two thick
    third = ndimage.binary_opening(not_background & (labels != color))
    return differs | third


def _regions(
    image: npt.NDArray[np.uint8], foreground: Mask, labels: npt.NDArray[np.intp], background: int
) -> list[_Region]:
    side = min(foreground.shape)
    speckle = SPECKLE * min(map(area, SHAPES)) * (min(RADII.values()) * side) ** 2
    numbered, _ = ndimage.label(foreground)
    regions = []
    for number, box in enumerate(ndimage.find_objects(numbered), start=1):
        mask = numbered[box] == number
        if mask.sum() < speckle:
            continue
        interior = ndimage.binary_erosion(mask)
        interior = interior if interior.any() else mask
        votes = np.bincount(labels[box][interior], minlength=len(COLORS))
        votes[background] = 0
        wider = tuple(slice(max(0, s.start - RIM), s.stop + RIM) for s in box)
        near = ndimage.binary_dilation(numbered[wider] == number, iterations=RIM)
        alpha = near * _opacity(image[wider], np.median(image[box][interior], axis=0), RGB[background])
        shape = _shape(alpha)
        radius = math.sqrt(alpha.sum() / area(shape)) / side if shape else math.nan
        if radius > MAX_MAGNITUDE * max(RADII.values()):
            shape = None
        y, x = ((s.start + s.stop) / 2 / extent for s, extent in zip(box, foreground.shape, strict=True))
        regions.append(_Region(COLORS[int(votes.argmax())], shape, radius, (x, y)))
    return regions


def _opacity(
    image: npt.NDArray[np.uint8], color: npt.NDArray[np.floating], background: npt.NDArray[np.floating]
) -> npt.NDArray[np.floating]:
    """The fraction of `color` in each pixel (height, width), 0 to 1, seen as a blend of `color` and `background`."""
    direction = color - background
    return np.clip((image - background) @ direction / max(direction @ direction, 1), 0, 1)


def _shape(alpha: npt.NDArray[np.floating]) -> str | None:
    """The shape that, given the region's area and centre of mass, overlaps its opacity best; None below MIN_OVERLAP.

    Blur rounds off the points of a star and so shrinks its bounding box, but changes neither area nor centre of mass.
    """
    size = float(alpha.sum())
    margin = math.ceil(math.sqrt(size)) + 1  # every shape of area 1 stays within 1 of its centre of mass
    alpha = np.pad(alpha, margin)
    y, x = (float(c) + 0.5 for c in ndimage.center_of_mass(alpha))
    overlaps = {}
    for shape in SHAPES:
        radius = math.sqrt(size / area(shape))
        dx, dy = centroid(shape)
        ideal = coverage(shape, (x - radius * dx, y - radius * dy), radius, *alpha.shape)
        shared = np.minimum(ideal, alpha).sum()
        overlaps[shape] = shared / (2 * size - shared)
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] >= MIN_OVERLAP else None


def _size(radius: float) -> str:
    """The size whose radius is nearest in ratio."""
    return min(RADII, key=lambda size: abs(math.log(radius / RADII[size])))


def _position(center: npt.NDArray[np.float64]) -> str:
    return min(ANCHORS, key=lambda position: math.dist(ANCHORS[position], center))


def _majority(values: Iterable[T | None]) -> T | None:
    """The value that more than half of `values` have, if there is one."""
    counts = Counter(values)
    value, votes = counts.most_common(1)[0]
    return value if 2 * votes > counts.total() else None
