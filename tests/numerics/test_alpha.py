"""What is seen of pictures with alpha: closed forms, and what does not matter."""

import numpy as np
import pytest

from precision_lab.numerics.alpha import BLACK, WHITE, chequered, over, seen
from precision_lab.numerics.metrics import compare_images


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def rgba(rng, height=24, width=31):
    return rng.integers(0, 256, (height, width, 4), dtype=np.uint8)


def test_opaque_pixels_are_their_colours_over_anything(rng):
    image = rgba(rng)
    image[..., 3] = 255
    for background in (WHITE, BLACK, 93):
        np.testing.assert_array_equal(over(image, background), image[..., :3])


def test_transparent_pixels_are_the_background(rng):
    image = rgba(rng)
    image[..., 3] = 0
    np.testing.assert_array_equal(over(image, 93), np.full_like(image[..., :3], 93))


def test_half_of_a_colour_over_a_picture():
    image = np.array([[[200, 0, 100, 51]]], dtype=np.uint8)  # a fifth
    np.testing.assert_array_equal(over(image, np.array([[[0, 100, 100]]])), [[[40, 80, 100]]])


def test_agrees_with_pillow(rng):
    from PIL import Image

    image = rgba(rng, 60, 70)
    for grey in (WHITE, BLACK, 120):
        below = Image.new("RGBA", (70, 60), (grey, grey, grey, 255))
        expected = np.asarray(Image.alpha_composite(below, Image.fromarray(image)))[..., :3]
        assert np.abs(over(image, grey).astype(int) - expected).max() <= 1  # Pillow rounds twice


def test_colours_of_transparent_pixels_do_not_matter(rng):
    one, other = rgba(rng), rgba(rng)
    one[..., 3] = other[..., 3] = 0
    assert compare_images(one, other).reasons["psnr_db"] == "identical"


def test_opacity_and_colours_matter(rng):
    image = rgba(rng)
    image[..., 3] = np.maximum(image[..., 3], 128)
    for channel in range(4):
        changed = image.copy()
        changed[3, 4, channel] ^= 64
        assert compare_images(image, changed).values["psnr_db"] < 100


def test_the_distance_is_that_of_the_seven_channels(rng):
    one, other = rgba(rng), rgba(rng)
    squares = [(over(one, grey).astype(float) - over(other, grey)) ** 2 for grey in (WHITE, BLACK)]
    squares.append((one[..., 3:].astype(float) - other[..., 3:]) ** 2)
    expected = 10 * np.log10(255**2 / np.concatenate(squares, axis=-1).mean())
    assert compare_images(one, other).values["psnr_db"] == pytest.approx(expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_other_pictures_are_compared_as_they_are(rng, channels):
    image = rng.integers(0, 256, (9, 8, channels), dtype=np.uint8)
    assert seen(image) is image
    assert chequered(image) is image


def test_squares_are_seen_where_nothing_covers_them(rng):
    image = np.zeros((16, 24, 4), dtype=np.uint8)
    shown = chequered(image, side=8)
    assert shown.shape == (16, 24, 3)
    assert set(np.unique(shown)) == {204, 255}
    assert (shown[:8, :8] == 204).all()
    assert (shown[:8, 8:16] == 255).all()
