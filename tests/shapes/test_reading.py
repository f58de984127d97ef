"""Reading rendered pictures, slightly degraded ones, and pictures that show no scene."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab

from precision_lab.errors import InputError
from precision_lab.shapes import SCORED, Reading, Scene, all_scenes, correct, read, render, verdict
from precision_lab.shapes.palette import COLORS, RGB
from precision_lab.shapes.scenes import POSITIONS, SIZES
from tests.spread import thinned

Picture = npt.NDArray[np.uint8]
Degrade = Callable[[Picture, np.random.Generator], Picture]
MANY = pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.slow)], ids=["some", "many"])
"""How many scenes are read: by default a third."""

SIDES = [(128, 128), (192, 128), (128, 192), (256, 256), (112, 144)]


def to_picture(values: npt.NDArray[np.float64]) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def blur(image: Picture, rng: np.random.Generator) -> Picture:
    return to_picture(ndimage.gaussian_filter(image.astype(float), (1, 1, 0)))


def noise(image: Picture, rng: np.random.Generator) -> Picture:
    return to_picture(image + rng.normal(0, 8, image.shape))


def jpeg(image: Picture, rng: np.random.Generator) -> Picture:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=75)
    return np.array(Image.open(file))


def shift(image: Picture, rng: np.random.Generator) -> Picture:
    return to_picture(image + rng.choice([-12.0, 12.0], 3))


def sample(n: int, rng: np.random.Generator) -> Iterator[Scene]:
    scenes = all_scenes()
    return (scenes[i] for i in rng.choice(len(scenes), n, replace=False))


@MANY
@pytest.mark.parametrize(("height", "width"), thinned(SIDES, keep=3))
def test_a_rendered_scene_is_read_in_full(height: int, width: int, times: int) -> None:
    rng = np.random.default_rng(height * width)
    wrong = [s.caption for s in sample(27 * times, rng) if not all(verdict(s, render(s, height, width, rng)).values())]
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), SIDES)
def test_a_rendered_scene_is_read_in_full_for_many(height: int, width: int) -> None:
    rng = np.random.default_rng(height + width)
    wrong = [s.caption for s in sample(500, rng) if not all(verdict(s, render(s, height, width, rng)).values())]
    assert not wrong


@MANY
@pytest.mark.parametrize(
    ("height", "width", "degrade"),
    thinned([(*size, how) for how in (blur, noise, jpeg, shift) for size in ((128, 128), (112, 144))], keep=4),
)
def test_slight_damage_leaves_98_percent_correct(degrade: Degrade, height: int, width: int, times: int) -> None:
    rng = np.random.default_rng(height)
    right = [correct(scene, degrade(render(scene, height, width, rng), rng)) for scene in sample(50 * times, rng)]
    assert np.mean(right) >= 0.98


@pytest.mark.parametrize("name", ["color", "shape", "background", "count", "size", "position"])
def test_another_scene_is_wrong_in_what_differs_and_in_nothing_else(name: str) -> None:
    rng = np.random.default_rng(len(name))
    scenes = [
        Scene(2, None, "red", "circle", "blue", "left"),
        Scene(3, "large", "white", "star", "cyan", None),
        Scene(1, "small", "purple", "cross", "green", "top"),
    ]
    for scene in scenes:
        values = {getattr(other, name) for other in all_scenes()} - {getattr(scene, name)}
        if name in ("color", "background"):
            values -= {scene.color, scene.background}
        for value in sorted(values, key=str):
            other = replace(scene, **{name: value})
            right = verdict(scene, render(other, 128, 128, rng))
            assert [key for key, ok in right.items() if not ok] == [name], (scene.caption, other.caption)
            assert correct(scene, render(other, 128, 128, rng)) == (name not in SCORED)


def everywhere_wrong(image: Picture) -> bool:
    """Whether the picture is correct for no scene: a scored attribute is unreadable, or there are no objects."""
    reading = read(image)
    return any(getattr(reading, name) is None for name in SCORED) or reading.count == 0


def test_noise_and_plain_pictures_are_no_scene() -> None:
    rng = np.random.default_rng(7)
    for height, width in SIDES:
        for color in (*RGB, np.array([127, 127, 127])):
            plain = np.broadcast_to(color, (height, width, 3)).astype(np.uint8)
            assert read(plain).count == 0
            assert everywhere_wrong(plain)
        uniform = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert everywhere_wrong(uniform)
        for sigma in (1, 2, 4, 8, 16):  # smooth noise of full contrast: blobs of all colours
            smooth = ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (sigma, sigma, 0))
            assert everywhere_wrong(to_picture(127 + 60 * smooth / smooth.std()))


@MANY
@pytest.mark.parametrize(
    ("rubbish", "half"), thinned(product(["noise", "black", "white"], ["left", "right", "top", "bottom"]), keep=6)
)
def test_a_half_destroyed_picture_is_wrong(rubbish: str, half: str, times: int) -> None:
    rng = np.random.default_rng(len(rubbish + half))
    rows = {"top": slice(0, 64), "bottom": slice(64, 128)}.get(half, slice(None))
    columns = {"left": slice(0, 64), "right": slice(64, 128)}.get(half, slice(None))
    for scene in sample(20 * times, rng):
        image = render(scene, 128, 128, rng)
        if rubbish == "noise":
            image[rows, columns] = rng.integers(0, 256, image[rows, columns].shape)
        elif rubbish == scene.background:
            continue  # erases at most whole objects, and may erase none
        else:
            image[rows, columns] = 0 if rubbish == "black" else 255
        assert not correct(scene, image), scene.caption


@MANY
def test_one_object_destroyed_among_three_is_wrong(times: int) -> None:
    rng = np.random.default_rng(11)
    for scene in sample(40 * times, rng):
        image = render(scene, 128, 128, rng)
        numbered, count = ndimage.label((image != image[0, 0]).any(axis=-1), np.ones((3, 3)))
        assert count == scene.count
        image[numbered == 1] = image[0, 0]
        assert not correct(scene, image), scene.caption


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "star", "cross"])
def test_two_merged_objects_are_not_two(shape: str) -> None:
    rng = np.random.default_rng(2)
    scene = Scene(2, "large", "red", shape, "white", None)
    image = render(scene, 128, 128, rng)
    rows, columns = np.nonzero((image != image[0, 0]).any(axis=-1))
    image[(rows.min() + rows.max()) // 2 - 6 :, columns.min() : columns.max() + 1][:20] = RGB[0]
    assert read(image).count != 2
    assert not correct(scene, image)


def test_speckles_do_not_count() -> None:
    rng = np.random.default_rng(4)
    scene = Scene(2, None, "yellow", "triangle", "purple", "bottom")
    image = render(scene, 128, 128, rng)
    for y, x in rng.integers(8, 60, (12, 2)):
        image[y : y + 2, x : x + 3] = rng.choice(RGB)
    assert all(verdict(scene, image).values())


def test_a_colour_outside_the_palette_is_the_nearest_one() -> None:
    rng = np.random.default_rng(9)
    scene = Scene(2, "large", "red", "circle", "black", None)
    mask = render(scene, 128, 128, rng).max(axis=-1) > 120
    for hue in [(240, 130, 30), (240, 150, 180), (150, 200, 40), (0, 128, 128)]:
        image = np.zeros((128, 128, 3), dtype=np.uint8)
        image[mask] = hue
        lab = rgb2lab(np.array([hue, *RGB]) / 255)
        expected = COLORS[np.linalg.norm(lab[1:] - lab[0], axis=-1).argmin()]
        assert (read(image).color, read(image).count) == (expected, 2)


def test_objects_of_two_colours_are_all_seen() -> None:
    """A third colour counts even if it is close to the background, such as yellow on white beside black."""
    rng = np.random.default_rng(6)
    scene = Scene(3, None, "black", "square", "white", None)
    image = render(scene, 128, 128, rng)
    numbered, _ = ndimage.label(image.min(axis=-1) < 128)
    image[numbered == 2] = RGB[COLORS.index("yellow")]
    assert read(image).count == 3
    assert read(image).color == "black"


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 7), (7, 1), (2, 2), (3, 3), (5, 4), (16, 16), (31, 33), (8, 200), (113, 147)]
)
def test_any_picture_can_be_read(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(shape))
    pictures = [
        np.zeros((*shape, 3), dtype=np.uint8),
        np.full((*shape, 3), 255, dtype=np.uint8),
        rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
        np.repeat(rng.choice([0, 255], (*shape, 1)).astype(np.uint8), 3, axis=2),
    ]
    for image in pictures:
        reading = read(image)
        assert isinstance(reading, Reading)
        assert set(verdict(all_scenes()[0], image)) == {field.name for field in fields(Reading)}


def test_readings_name_the_size_and_position_that_captions_omit() -> None:
    image = render(Scene(1, None, "red", "star", "white", None), 128, 128, np.random.default_rng(0))
    assert read(image) == Reading("white", "red", "star", 1, "medium", "center")
    assert {*SIZES, *POSITIONS}.isdisjoint({"medium", "center"})


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 5), np.uint8), np.zeros((0, 8, 4), np.uint8)],
)
def test_other_arrays_are_rejected(image: npt.NDArray[np.generic]) -> None:
    with pytest.raises(InputError, match="uint8 picture"):
        read(image)


# --- pictures with an alpha channel


def transparent_sample(n: int, rng: np.random.Generator) -> Iterator[Scene]:
    scenes = all_scenes(transparent=True)[len(all_scenes()) :]
    return (scenes[i] for i in rng.choice(len(scenes), n, replace=False))


def opaque(image: Picture, alpha: int = 255) -> Picture:
    return np.concatenate((image, np.full_like(image[..., :1], alpha)), axis=-1)


@MANY
@pytest.mark.parametrize(("height", "width"), thinned(SIDES, keep=3))
def test_a_rendered_transparent_scene_is_read_in_full(height: int, width: int, times: int) -> None:
    rng = np.random.default_rng(height - width + 200)
    scenes = transparent_sample(27 * times, rng)
    assert not [s.caption for s in scenes if not all(verdict(s, render(s, height, width, rng)).values())]


@MANY
@pytest.mark.parametrize("degrade", [blur, noise, shift])
def test_slightly_damaged_transparent_pictures_are_read(degrade: Degrade, times: int) -> None:
    """Alpha is damaged, and colours only where a pixel is visible: straight alpha has no colour elsewhere."""
    rng = np.random.default_rng(6)
    right = []
    for scene in transparent_sample(50 * times, rng):
        image = render(scene, 128, 128, rng)
        image[..., :3] = image[image[..., 3] > 0][0, :3]
        color, alpha = degrade(image[..., :3], rng), degrade(np.repeat(image[..., 3:], 3, 2), rng)[..., :1]
        right.append(correct(scene, np.concatenate((color, alpha), axis=-1)))
    assert np.mean(right) >= 0.98


def test_the_colour_under_transparent_pixels_is_immaterial() -> None:
    rng = np.random.default_rng(8)
    for scene in transparent_sample(20, rng):
        image = render(scene, 128, 128, rng)
        hidden = image[..., 3] == 0
        expected = read(image)
        for colors in (255, rng.integers(0, 256, (hidden.sum(), 3))):
            image[hidden, :3] = colors
            assert read(image) == expected


@MANY
def test_an_opaque_alpha_channel_changes_nothing(times: int) -> None:
    rng = np.random.default_rng(9)
    for scene in sample(14 * times, rng):
        image = render(scene, 128, 128, rng)
        assert read(opaque(image)) == read(opaque(image, 250)) == read(image)


def test_transparency_and_colour_are_different_backgrounds() -> None:
    rng = np.random.default_rng(10)
    for scene in sample(20, rng):
        transparent = replace(scene, background="transparent")
        image = render(transparent, 128, 128, rng)
        wrong = verdict(scene, image)
        assert [name for name, right in wrong.items() if not right] == ["background"]
        wrong = verdict(transparent, opaque(render(scene, 128, 128, rng)))
        assert [name for name, right in wrong.items() if not right] == ["background"]


def test_half_transparent_backgrounds_are_not_plain() -> None:
    rng = np.random.default_rng(12)
    for scene in sample(10, rng):
        for alpha in (64, 128, 200):
            assert everywhere_wrong(opaque(render(scene, 128, 128, rng), alpha))


def test_a_hole_is_no_object_and_a_transparent_object_has_no_colour_of_the_world() -> None:
    rng = np.random.default_rng(13)
    for scene in sample(40, rng):
        image = render(scene, 128, 128, rng)
        holes = opaque(image)
        holes[(image != image[0, 0]).any(axis=-1)] = (*RGB[COLORS.index(scene.color)], 0)
        assert not correct(scene, holes), scene.caption
        assert read(holes).color == "transparent"


def test_plain_and_noisy_pictures_with_alpha_are_no_scene() -> None:
    rng = np.random.default_rng(14)
    empty = np.zeros((128, 128, 4), dtype=np.uint8)
    assert read(empty).count == 0
    assert read(empty).background == "transparent"
    for sigma in (0.1, 1, 4, 16):
        smooth = ndimage.gaussian_filter(rng.normal(size=(128, 128, 4)), (sigma, sigma, 0))
        assert everywhere_wrong(to_picture(127 + 60 * smooth / smooth.std()))
