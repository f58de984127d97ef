"""Drawn objects have the right area, stay apart and inside, and depend only on the seed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import pdist
from skimage.color import rgb2lab

from precision_lab.errors import InputError
from precision_lab.shapes import Scene, all_scenes, layout, render
from precision_lab.shapes.outlines import POLYGONS, SHAPES, area, centroid, coverage
from precision_lab.shapes.palette import RGB

SIDES = [(128, 128), (192, 128), (128, 192), (256, 256), (112, 144)]
every_shape = pytest.mark.parametrize("shape", SHAPES)


@every_shape
@pytest.mark.parametrize("radius", [8.0, 12.3, 31.7])
def test_antialiasing_conserves_area_and_place(shape: str, radius: float) -> None:
    rng = np.random.default_rng(int(radius))
    for x, y in rng.uniform(40, 60, (20, 2)):
        alpha = coverage(shape, (x, y), radius, 100, 100)
        assert alpha.min() >= -1e-12
        assert alpha.max() <= 1 + 1e-12
        assert alpha.sum() == pytest.approx(area(shape) * radius**2, rel=0.01)
        middle = np.array(ndimage.center_of_mass(alpha))[::-1] + 0.5
        np.testing.assert_allclose(middle, np.array((x, y)) + radius * np.array(centroid(shape)), atol=0.1)


@every_shape
def test_coverage_agrees_with_counting_points(shape: str) -> None:
    """Compares with 40 x 40 points per pixel, each tested against the outline."""
    points = (np.arange(20 * 40) + 0.5) / 40
    x, y = np.meshgrid((points - 10.3) / 8.6, (points - 9.8) / 8.6)
    if shape == "circle":
        inside = x**2 + y**2 < 1
    else:
        crossings = np.zeros(x.shape, dtype=int)  # of a ray to the right
        corners = POLYGONS[shape]
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if y0 != y1:
                crossings += ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
        inside = crossings % 2 == 1
    expected = inside.reshape(20, 40, 20, 40).mean(axis=(1, 3))
    np.testing.assert_allclose(coverage(shape, (10.3, 9.8), 8.6, 20, 20), expected, atol=0.13)


@every_shape
def test_a_rendered_object_has_the_area_of_its_shape(shape: str) -> None:
    for size in (None, "small", "large"):
        image = render(Scene(3, size, "white", shape, "black", None), 128, 160, np.random.default_rng(1))
        black, white = RGB[[7, 6]].sum(axis=-1)
        share = (image.sum(axis=-1, dtype=float) - black) / (white - black)
        radius = layout.RADII[size or "medium"] * 128
        assert share.sum() == pytest.approx(3 * area(shape) * radius**2, rel=0.01)


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_objects_keep_apart_and_inside(height: int, width: int) -> None:
    """The gap is at least 3 % of the shorter side, so no pixel of it mixes two objects."""
    rng = np.random.default_rng(height + width)
    side = min(height, width)
    scenes = [scene for scene in all_scenes() if scene.size == "large" and scene.count == 3]
    for scene in scenes[:: len(scenes) // 50]:
        for _ in range(20):
            centers = layout.centers(scene, height, width, rng)
            reach = layout.RADII["large"] * side
            assert pdist(centers).min() - 2 * reach > 0.03 * side
            assert (centers - reach).min() > 0.03 * side
            assert ((width, height) - centers - reach).min() > 0.03 * side


def test_the_seed_decides_the_picture() -> None:
    scene = all_scenes()[4321]
    first, again, other = (render(scene, 112, 144, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.shape == (112, 144, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_edges_are_antialiased_blends_of_the_two_colours() -> None:
    scene = Scene(1, "large", "white", "circle", "black", None)
    image = render(scene, 128, 128, np.random.default_rng(0))
    colors = np.unique(image.reshape(-1, 3), axis=0)
    assert len(colors) > 20
    direction = RGB[6] - RGB[7]
    along = ((colors - RGB[7]) @ direction / (direction @ direction))[:, None]
    np.testing.assert_allclose(RGB[7] + along * direction, colors, atol=1)


def test_position_places_and_stacks_the_objects() -> None:
    rng = np.random.default_rng(5)
    scene = Scene(3, None, "red", "star", "white", None)
    for position, axis in (("left", 1), ("right", 1), ("top", 0), ("bottom", 0), (None, 0)):
        centers = layout.centers(replace(scene, position=position), 120, 200, rng)
        spread = np.ptp(centers, axis=0)
        assert spread[axis] > 8 * spread[1 - axis]
        aim = np.array(layout.ANCHORS[position or "center"]) * (200, 120)
        assert math.dist(centers.mean(axis=0), aim) < 0.05 * 120


def test_no_two_colours_are_alike() -> None:
    assert pdist(rgb2lab(RGB / 255)).min() > 40


def test_a_picture_too_small_is_rejected() -> None:
    with pytest.raises(InputError, match="32 x 32"):
        render(all_scenes()[0], 16, 128, np.random.default_rng(0))


@every_shape
def test_alpha_is_coverage_and_objects_have_one_colour(shape: str) -> None:
    scene = Scene(2, "large", "purple", shape, "transparent", "right")
    image = render(scene, 128, 160, np.random.default_rng(4))
    assert image.shape == (128, 160, 4)
    assert image.dtype == np.uint8
    covered = image[..., 3] > 0
    assert (image[~covered] == 0).all()
    assert (image[covered, :3] == RGB[4]).all()
    radius = layout.RADII["large"] * 128
    assert image[..., 3].sum() / 255 == pytest.approx(2 * area(shape) * radius**2, rel=0.01)
    # composited over black, it is the picture with a black background, up to the rounding of alpha
    black = render(replace(scene, background="black"), 128, 160, np.random.default_rng(4))
    alpha = image[..., 3:] / 255
    np.testing.assert_allclose(image[..., :3] * alpha + RGB[7] * (1 - alpha), black, atol=1)
