"""Recognising the scene in a picture by classical image processing.

The background is the colour of the border, or transparent where the border's alpha is near 0. An object is a connected
region of pixels that differ from the background by more than half as much as the object's colour does, which places a
blurred or antialiased edge correctly; before a transparent background, of pixels that are more than half opaque. The
colour of a region is the most common one in its interior; its shape is the one whose outline, at the same size and
place, overlaps the region best.
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
from precision_lab.shapes.palette import RGB, nearest_color
from precision_lab.shapes.scenes import BACKGROUNDS, TRANSPARENT

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
CLEAR = 0.125
"""The largest opacity of a pixel of a transparent border."""
HALF = 127.5
"""The alpha above which a pixel shows its colour; at or below it, the pixel is transparent."""
EMPTY = BACKGROUNDS.index(TRANSPARENT)
"""The label of transparent pixels, which follows those of the colours."""

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


@dataclass(frozen=True)
class _Picture:
    """rgb: (height, width, 3). opacity: (height, width), 0 to 1. labels: (height, width) indices in BACKGROUNDS."""

    rgb: npt.NDArray[np.uint8]
    opacity: npt.NDArray[np.floating]
    labels: npt.NDArray[np.intp]

    def __getitem__(self, box: tuple[slice, ...]) -> _Picture:
        return _Picture(self.rgb[box], self.opacity[box], self.labels[box])


def read(image: npt.NDArray[np.uint8]) -> Reading:
    """Recognises the scene in any uint8 picture (height, width, 3), or (height, width, 4) with straight alpha.

    Raises InputError for other dtypes or shapes.
    """
    if image.ndim != 3 or image.shape[2] not in (3, 4) or image.dtype != np.uint8 or image.size == 0:
        raise InputError(
            f"Expected a uint8 picture of shape (height, width, 3 or 4), got {image.dtype} of {image.shape}"
        )
    picture = _picture(image)
    background = _background(picture)
    if background is None:
        return Reading(None, None, None, None, None, None)
    regions = _regions(picture, _foreground(picture, background), background)
    if not regions:
        return Reading(BACKGROUNDS[background], None, None, 0, None, None)
    shape = _majority(region.shape for region in regions)
    return Reading(
        background=BACKGROUNDS[background],
        color=_majority(region.color for region in regions),
        shape=shape,
        count=len(regions) if all(region.shape for region in regions) else None,
        size=_size(float(np.median([region.radius for region in regions]))) if shape else None,
        position=_position(np.mean([region.center for region in regions], axis=0)),
    )


def _picture(image: npt.NDArray[np.uint8]) -> _Picture:
    """Separates colour and alpha. The colour under transparent pixels is arbitrary, and is made black."""
    rgb = image[..., :3]
    if image.shape[2] == 3:
        return _Picture(rgb, np.ones(image.shape[:2]), nearest_color(rgb))
    shown = image[..., 3] > HALF
    rgb = rgb * shown[..., None]
    return _Picture(rgb, image[..., 3] / 255, np.where(shown, nearest_color(rgb), EMPTY))


def _background(picture: _Picture) -> int | None:
    """The label of the border, or None if too little of the border is plain.

    It is that of the colour nearest to the border's median, or EMPTY if the border is transparent. A border between
    opaque and transparent is not plain.
    """
    labels = picture.labels
    width = max(1, round(BORDER * min(labels.shape)))
    border = np.ones(labels.shape, dtype=bool)
    border[width:-width, width:-width] = False
    opacity = picture.opacity[border]
    if (opacity <= CLEAR).mean() >= PLAIN_BORDER:
        return EMPTY
    background = int(nearest_color(np.median(picture.rgb[border], axis=0)))
    plain = (labels[border] == background) & (opacity >= 1 - CLEAR)
    return background if plain.mean() >= PLAIN_BORDER else None


def _foreground(picture: _Picture, background: int) -> Mask:
    """The mask of object pixels: closer to the commonest object colour than to the background, or of a third colour."""
    labels = picture.labels
    not_background = labels != background
    if background == EMPTY:
        return not_background
    interior = ndimage.binary_erosion(not_background)
    if not interior.any():
        return interior
    color = int(np.bincount(labels[interior]).argmax())
    object_color = np.median(picture.rgb[interior & (labels == color)], axis=0)
    distance = np.linalg.norm(picture.rgb - RGB[background], axis=-1)
    differs = distance > np.linalg.norm(object_color - RGB[background]) / 2
    # blended edges can resemble a third colour too, but are only a pixel or two thick
    third = ndimage.binary_opening(not_background & (labels != color))
    return differs | third


def _regions(picture: _Picture, foreground: Mask, background: int) -> list[_Region]:
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
        votes = np.bincount(picture.labels[box][interior], minlength=len(BACKGROUNDS))
        votes[background] = 0
        wider = tuple(slice(max(0, s.start - RIM), s.stop + RIM) for s in box)
        near = ndimage.binary_dilation(numbered[wider] == number, iterations=RIM)
        alpha = near * _opacity(picture[wider], np.median(picture.rgb[box][interior], axis=0), background)
        shape = _shape(alpha)
        radius = math.sqrt(alpha.sum() / area(shape)) / side if shape else math.nan
        if radius > MAX_MAGNITUDE * max(RADII.values()):
            shape = None
        y, x = ((s.start + s.stop) / 2 / extent for s, extent in zip(box, foreground.shape, strict=True))
        regions.append(_Region(BACKGROUNDS[int(votes.argmax())], shape, radius, (x, y)))
    return regions


def _opacity(picture: _Picture, color: npt.NDArray[np.floating], background: int) -> npt.NDArray[np.floating]:
    """The fraction of the object in each pixel (height, width), 0 to 1: alpha before a transparent background, else
    the fraction of `color` if the pixel is a blend of `color` and the background's colour."""
    if background == EMPTY:
        return picture.opacity
    direction = color - RGB[background]
    return np.clip((picture.rgb - RGB[background]) @ direction / max(direction @ direction, 1), 0, 1)


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
