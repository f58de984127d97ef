"""Tables that a reader sorts and searches, and the button of the theme."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

from precision_lab.report.embedding import ALWAYS, FIRST, scripts

ROWS = ["5.68×10⁷", "−2", "3\u202f020", "—", "0.5", "not finite", "1.2×10⁻³"]
ASCENDING = ["−2", "1.2×10⁻³", "0.5", "3\u202f020", "5.68×10⁷", "not finite", "—"]


@pytest.fixture
def table(page, tmp_path):
    body = "".join(
        f"<tr><th scope='row'>row {i}</th><td>{text}<small>note</small></td></tr>" for i, text in enumerate(ROWS)
    )
    (tmp_path / "page.html").write_text(
        f"<!DOCTYPE html><html lang='en'><title>t</title>{scripts(FIRST)}<body><header><h1>t</h1></header>"
        "<table class='sortable' data-search='Search rows'><thead><tr><th scope='col'>name</th>"
        f"<th scope='col'>value<small>lower is better</small></th></tr></thead><tbody>{body}</tbody></table>"
        f"{scripts(ALWAYS)}</body></html>",
        encoding="utf-8",
    )
    return page.open(tmp_path / "page.html")


def _values(page):
    return page.js("return [...document.querySelectorAll('td')].map(cell => cell.firstChild.textContent)")


def _sorts(page):
    return page.js("return [...document.querySelectorAll('thead th')].map(head => head.getAttribute('aria-sort'))")


def test_click_and_key_sort_a_table_by_numbers_as_pages_write_them(table):
    buttons = table.all("thead button")
    buttons[1].click()
    assert _values(table) == ASCENDING
    assert _sorts(table) == [None, "ascending"]
    table.press(Keys.ENTER)
    assert _values(table) == [*reversed(ASCENDING[:5]), "not finite", "—"]
    assert _sorts(table) == [None, "descending"]
    buttons[0].click()
    assert _values(table) == ROWS
    assert _sorts(table) == ["ascending", None]


def test_a_search_hides_the_other_rows_and_says_how_many_are_left(table):
    table.find("input[type=search]").send_keys("FINITE row")
    shown = table.js(
        "return [...document.querySelectorAll('tbody tr')].filter(row => !row.hidden).map(r => r.rowIndex)"
    )
    assert shown == [6]
    assert table.find("[role=status]").text == "1 of 7 rows"


def test_the_button_turns_the_theme_over(page, reported):
    def background():
        return page.js("return getComputedStyle(document.body).backgroundColor")

    page.open(reported, theme="light")
    light = background()
    page.click("header button.theme")
    dark = background()
    assert dark != light
    page.open(reported, theme="dark")
    assert background() == dark
    page.click("header button.theme")
    assert background() == light
    assert page.axe("moderate", "serious", "critical") == []
