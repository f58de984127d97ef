"""The viewer of pictures: what it shows, by mouse, keyboard and fingers, and that its numbers are those of NumPy."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

from precision_lab.numerics.alpha import seen
from precision_lab.record.images import read_image
from precision_lab.report import write
from tests.browser.conftest import plain_figures
from tests.report.conftest import SMALL
from tests.report.fabricated_run import fabricate

TRANSFORMS = "return [...document.querySelectorAll('.layer > img')].map((e) => e.style.transform)"
MEASURED = "const d = document.querySelector('[data-part=measure]').dataset; return [d.max, d.mean]"


@pytest.fixture(scope="module")
def transparent(tmp_path_factory):
    """A page whose pictures have alpha, all of its values, beside every value of a colour."""
    run = fabricate(tmp_path_factory.mktemp("alpha") / "run", **(SMALL | {"blocks": 2, "seeds": (0,), "side": 64}))
    rng = np.random.default_rng(3)
    for path in sorted((run / "images").iterdir()):
        pixels = rng.integers(0, 256, (64, 48, 4), np.uint8)
        pixels[:9, :, 3], pixels[9:20, :, 3] = 255, 0
        Image.fromarray(pixels).save(path)
    with plain_figures():
        return write(run)


def choose(page, part, value):
    page.js(
        "const s = document.querySelector(`[data-part=${arguments[0]}]`); s.value = arguments[1];"
        "s.dispatchEvent(new Event('change'))",
        part,
        value,
    )


def measured(page):
    """Maximum and mean of the difference, once they are there."""
    for _ in range(200):
        values = page.js(MEASURED)
        if values[0] is not None:
            return int(values[0]), float(values[1])
    raise AssertionError("no difference was measured")


def place_of(page):
    """The one place that all pictures have."""
    places = {tuple(float(re.findall(r"-?[\d.]+(?:e-?\d+)?", t)[i]) for i in (0, 4, 5)) for t in page.js(TRANSFORMS)}
    assert len(places) == 1, "pictures have moved apart"
    return places.pop()


@pytest.mark.parametrize("which", ["reported", "transparent"])
def test_differences_are_those_of_numpy(page, request, which):
    path = request.getfixturevalue(which)
    page.open(path)
    page.js("document.querySelector('input[value=difference]').click()")
    for variant, gain in (("baseline", 1), ("ffn_scaling", 16)):
        choose(page, "b", variant)
        choose(page, "gain", str(gain))
        found = measured(page)
        files = [path.parent / "images" / f"{name}__p0__s0.png" for name in ("reference", variant)]
        a, b = (seen(read_image(file)[0]).astype(int) for file in files)
        delta = abs(a - b)
        delta = np.maximum(delta[..., :3], delta[..., 3:6]) if delta.shape[2] > 3 else delta
        assert found == (delta.max(), pytest.approx(delta.mean(), rel=1e-12))
        drawn = page.js(
            "const c = document.querySelector('[data-part=difference]');"
            "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
        )
        drawn = np.reshape(drawn, (*delta.shape[:2], 4))
        np.testing.assert_array_equal(drawn[..., :3], np.minimum(255, gain * delta))
    choose(page, "b", "reference")
    assert measured(page) == (0, 0)


def test_zoom_and_pan_move_both_pictures(page, reported):
    page.open(reported)
    measured(page)
    scale, x, y = place_of(page)
    page.focus(".stage")
    page.press("+", "+")
    assert place_of(page)[0] == pytest.approx(2 * scale)
    assert page.js("return document.querySelector('.layer img').style.imageRendering") == "pixelated"
    before = place_of(page)
    page.press(Keys.ARROW_LEFT)
    assert place_of(page)[1] > before[1]
    page.press("0")
    assert place_of(page) == (scale, x, y)
    page.click("[data-zoom=in]")
    page.click("[data-zoom=in]")
    pane = page.all(".pane")[1]
    before = place_of(page)
    page.actions().move_to_element(pane).click_and_hold().move_by_offset(-30, -20).release().perform()
    assert np.subtract(place_of(page), before) == pytest.approx([0, -30, -20])
    wheel = {"type": "mouseWheel", "deltaX": 0, "deltaY": -200}
    place = page.js("const r = arguments[0].getBoundingClientRect(); return {x: r.x + 40, y: r.y + 60}", pane)
    page.command("Input.dispatchMouseEvent", wheel | place)
    assert place_of(page)[0] > before[0]


def test_two_fingers_zoom(page, reported):
    page.open(reported)
    measured(page)
    scale, *_ = place_of(page)
    page.js("document.querySelector('.stage').scrollIntoView({behavior: 'instant'})")
    x, y = page.js("const r = document.querySelector('.pane').getBoundingClientRect(); return [r.x + 200, r.y + 200]")
    for kind, spread in (("touchStart", 20), ("touchMove", 40), ("touchMove", 60)):
        points = [{"x": x - spread, "y": y, "id": 1}, {"x": x + spread, "y": y, "id": 2}]
        page.command("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    page.command("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert place_of(page)[0] > 1.5 * scale


def test_the_slider_moves_by_mouse_and_keyboard_and_says_where_it_is(page, reported):
    page.open(reported)
    measured(page)
    page.js("document.querySelector('input[value=slider]').click()")
    handle = page.find("[role=slider]")
    value = lambda: int(handle.get_attribute("aria-valuenow"))  # noqa: E731
    assert value() == 50
    width = page.js("return document.querySelector('.pane').clientWidth")
    page.actions().move_to_element(handle).click_and_hold().move_by_offset(width // 4, 0).release().perform()
    assert value() == pytest.approx(75, abs=1)
    assert page.js("return document.querySelectorAll('.layer')[1].style.clipPath").startswith("inset(0")
    handle.send_keys(Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.PAGE_UP)
    assert value() == 12
    assert handle.get_attribute("aria-valuetext") == "12 % reference, the rest baseline"


def test_pictures_are_chosen_and_swapped_and_say_what_is_not_finite(page, reported):
    page.open(reported, theme="dark", reduced_motion=True)
    measured(page)
    page.click(".strip button[value=float16]")
    assert page.find("[data-part=b]").get_attribute("value") == "float16"
    assert "not finite, drawn as 0" in page.all("figure figcaption span[data-of=b]")[-1].text
    choose(page, "case", "0,5")
    assert page.find(".layer img").get_attribute("alt") == "reference, prompt 0, seed 5"
    page.js("document.querySelector('input[value=blink]').click()")
    assert not page.find("[data-part=automatic]").is_enabled(), "motion is reduced"
    assert page.js("return document.querySelector('.stage').dataset.shows") == "a"
    page.focus(".stage")
    page.press("b")
    assert page.js("return document.querySelector('.stage').dataset.shows") == "b"
    page.click("[data-part=swap]")
    assert page.js("return document.querySelector('.stage').dataset.shows") == "a"


def test_blinking_starts_and_stops(page, reported):
    page.open(reported)
    measured(page)
    page.js("document.querySelector('input[value=blink]').click()")
    pressed = lambda: page.find("[data-part=automatic]").get_attribute("aria-pressed")  # noqa: E731
    assert pressed() == "true"
    page.driver.execute_async_script(
        "const [done] = arguments; new MutationObserver((_, o) => { o.disconnect(); done(); })"
        ".observe(document.querySelector('.stage'), {attributeFilter: ['data-shows']})"
    )
    page.click("[data-part=automatic]")
    assert pressed() == "false"
