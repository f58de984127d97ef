"""The explorer of a run: cells, rows, curves and filters follow one choice, by pointer and by keys."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys


@pytest.fixture
def explorer(page, reported):
    return page.open(reported, width=1120, height=2600)


def _chosen(page):
    return page.js(
        "return [...document.querySelectorAll('#explorer-sites tr.chosen code')].map(code => code.textContent)"
    )


def _rows(page):
    return page.js(
        "const rows = [...document.querySelectorAll('#explorer-sites tbody tr')];"
        "return rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )


def _pick(page, name, value):
    page.js(
        "const boxes = [...document.querySelectorAll('#explorer select')];"
        "const box = boxes.find(b => b.parentNode.textContent.startsWith(arguments[0]));"
        "box.value = [...box.options].find(o => o.text === arguments[1]).value; box.dispatchEvent(new Event('change'))",
        name,
        value,
    )


def test_a_cell_chooses_its_row_and_a_row_its_history(explorer):
    x, y = explorer.js("return lab.explorer.place(2, 1)")
    chart = explorer.find("#explorer-map")
    size = chart.size
    explorer.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", chart)
    explorer.actions().move_to_element_with_offset(
        chart, int(x - size["width"] / 2), int(y - size["height"] / 2)
    ).perform()
    tip = explorer.js("return document.querySelector('#explorer-map').innerText")
    assert "transformer_blocks.2" in tip
    assert "step 1" in tip
    explorer.actions().click().perform()
    assert _chosen(explorer) == ["transformer_blocks.2 (out.0)"]
    assert explorer.find("#explorer-history-title").text == "transformer_blocks.2 (out.0) over the steps"
    explorer.js("document.querySelector('#explorer-sites tbody tr:nth-child(5) button').click()")
    (chosen,) = _chosen(explorer)
    assert explorer.find("#explorer-history-title").text == f"{chosen} over the steps"
    framed = explorer.js(
        "return lab.explorer.drawn.map()[0].data.filter(cell => cell.itemStyle.borderWidth).map(cell => cell.value[0])"
    )
    assert framed == [explorer.js("return lab.data('explorer-data').sites.block[lab.explorer.state.site]")] * 3


def test_keys_move_over_the_map_and_choose(explorer):
    explorer.focus("#explorer-map")
    explorer.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert "transformer_blocks.1 (out.0)" in explorer.find("#explorer-said").text
    assert "step 1" in explorer.find("#explorer-said").text
    explorer.press(Keys.ENTER)
    assert _chosen(explorer) == ["transformer_blocks.1 (out.0)"]


def test_the_table_is_sorted_searched_and_filtered(explorer):
    explorer.js(
        "[...document.querySelectorAll('#explorer-sites thead button')].find(b => b.textContent === 'block').click()"
    )
    assert explorer.find("#explorer-sites [aria-sort]").get_attribute("aria-sort") == "descending"
    blocks = [int(row[2]) for row in _rows(explorer) if row[2] != "—"]
    assert blocks == sorted(blocks, reverse=True)
    explorer.find("#explorer-filters input[type=search]").send_keys("img_mlp")
    assert all("img_mlp" in row[0] for row in _rows(explorer))
    first, last = explorer.all("#explorer-filters input[type=number]")
    first.send_keys("2")
    last.send_keys("3")
    assert {row[2] for row in _rows(explorer)} == {"2", "3"}
    assert "of 2 sites" in explorer.find("#explorer-pages [role=status]").text
    _pick(explorer, "Component", "pipeline")
    assert _rows(explorer) == []
    assert explorer.find("#explorer-pages [role=status]").text == "No site matches"


def test_variants_are_switched_off_and_measures_and_themes_change(explorer):
    names = "return lab.explorer.drawn.lines().map(s => s.name)"
    assert "float16, not finite" in explorer.js(names)
    explorer.js(
        "[...document.querySelectorAll('#explorer-variants label')].find(l => l.textContent === 'float16').click()"
    )
    shown = explorer.js(names)
    assert "float16" not in shown
    assert "baseline" in shown
    _pick(explorer, "Measure", "headroom in float16")
    _pick(explorer, "Variant", "float16")
    assert "headroom in float16" in explorer.find("#explorer-map-title").text
    explorer.click("header button.theme")
    assert explorer.axe("moderate", "serious", "critical") == []


def test_a_narrow_page_does_not_scroll_sideways(page, reported):
    page.open(reported, width=420)
    assert page.js("return document.documentElement.scrollWidth") <= 420


def test_a_title_speaks_of_crosses_where_a_drawn_variant_has_some(explorer):
    title = explorer.find("#explorer-lines-title")
    assert "crosses" in title.text
    [box] = [label for label in explorer.all("#explorer label.curve") if label.text == "float16"]
    box.click()
    assert "crosses" not in title.text
    box.click()
    assert "crosses" in title.text


def test_sites_fit_a_screen_of_1024_and_are_short_cards_on_a_phone(page, reported):
    page.open(reported, width=1024)
    table = "return document.querySelector('#explorer-sites')"
    assert page.js(f"{table}.scrollWidth <= {table[7:]}.parentNode.clientWidth")
    page.open(reported, width=420)
    heights = page.js(f"return [...{table[7:]}.querySelectorAll('tbody tr')].map(row => row.offsetHeight)")
    assert max(heights) < 220
