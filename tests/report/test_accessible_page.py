"""The page for every reader: ids, header cells, alternative texts, contrast, numbers of figures, all pictures."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from precision_lab import report
from precision_lab.record.summary import Quantity, Summary
from precision_lab.report import conclusion, gallery
from precision_lab.report.figures import style
from precision_lab.report.view import View

CSS = (Path(report.__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """All elements of a page in order, as (tag, attributes); and the text of headings."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append("")

    def handle_data(self, data):
        if self.found and re.fullmatch("h[1-6]", self.found[-1][0]):
            self.headings[-1] += data

    def of(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


@pytest.fixture(scope="module")
def page(reported):
    return Elements((reported / "report.html").read_text(encoding="utf-8"))


def test_ids_are_unique_and_links_lead_to_them(page):
    ids = [attrs["id"] for _, attrs in page.found if "id" in attrs]
    assert len(set(ids)) == len(ids) > 10
    assert not any(re.search(r"\s", each) for each in ids)
    links = [attrs["href"][1:] for attrs in page.of("a") if attrs.get("href", "").startswith("#")]
    assert links
    assert set(links) <= set(ids)


def test_every_header_cell_has_a_scope_and_every_scrolling_part_the_keyboard(page):
    assert {attrs.get("scope") for attrs in page.of("th")} == {"col", "row"}
    scrolling = [attrs for attrs in page.of("div") if attrs.get("class") in ("wide", "plot")]
    assert len(scrolling) > 10
    assert all(attrs["tabindex"] == "0" and attrs["role"] == "region" for attrs in scrolling)
    ids = {attrs["id"] for _, attrs in page.found if "id" in attrs}
    assert all(attrs.get("aria-label") or attrs["aria-labelledby"] in ids for attrs in scrolling)


def test_every_template_gives_header_cells_a_scope():
    for template in (Path(report.__file__).parent / "templates").glob("*.html"):
        assert not re.search(r"<th(?! scope=)[ >{]", template.read_text(encoding="utf-8")), template


def test_alternative_texts_describe_and_do_not_repeat(page):
    texts = [attrs["alt"] for attrs in page.of("img")]
    assert len(set(texts)) == len(texts) > 5
    assert not set(texts) & set(page.headings)
    figures = [attrs["alt"] for attrs in page.of("img") if "data-case" not in attrs]
    assert all(re.match(r"(Plot|Grid)[^:]*: \w", text) or "Horizontal:" in text for text in figures)


def test_figures_are_numbered_without_a_gap_though_some_are_absent(small_run, unrendered):
    run = small_run(blocks=2, steps=2)
    (run / "activations.parquet").unlink()
    text = report.write(run).read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"<b>Figure (\d+)\.</b>", text)]
    assert "recorded no activations" in text
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 3


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast_in_both_themes(theme):
    pairs = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", CSS)
    colours = {name: shades[theme] for name, *shades in pairs}
    papers = [colours.pop(name) for name in ("paper", "tint")]
    del colours["rule"]
    assert len(colours) >= 6
    for name, colour in colours.items():
        assert all(style.contrast(colour, paper) >= 4.5 for paper in papers), name


def test_the_style_sheet_knows_print_motion_focus_and_narrow_screens():
    for condition in ("@media print", "prefers-reduced-motion", ":focus-visible", "max-width: 640px"):
        assert condition in CSS
    assert re.search(r"@media print \{\s*:root[^}]*color-scheme: light", CSS)
    assert "prefers-color-scheme" not in CSS  # a theme is the pairs of light-dark(), or print would be dark


def test_all_pictures_can_be_reached_whatever_the_figure_shows(small_run, figureless):
    names = ("reference", *(f"variant_{i}" for i in range(11)))
    run = small_run(variants=names, overflowing=("variant_3",), blocks=2, steps=2, side=16, teacher=False)
    (run / "images" / "variant_5__p0__s0.png").unlink()
    found = gallery.of(View.open(run))
    assert tuple(found.rows) == names
    notes = {picture.alt: picture.note for pictures in found.rows.values() for picture in pictures if picture.note}
    assert notes.pop("variant_5, prompt 0, seed 0") == "no picture"
    assert set(notes.values()) == {gallery.NOT_FINITE}
    assert all(name.startswith("variant_3, ") for name in notes)
    assert found.cases == {(0, 0): "a bicycle", (0, 5): "a bicycle"}
    elements = Elements(report.write(run).read_text(encoding="utf-8"))
    alts = {attrs["alt"] for attrs in elements.of("img")}
    assert {f"{name}, prompt 0, seed 5" for name in names if name != "variant_3"} <= alts


def test_every_picture_is_in_the_page_once_with_the_bytes_of_its_file_as_far_as_the_limit_goes(
    small_run, figureless, monkeypatch
):
    run = small_run(blocks=2, steps=2, teacher=False)
    files = {path.name: path for path in (run / "images").iterdir()}
    text = report.write(run).read_text(encoding="utf-8")
    assert all(text.count(base64.b64encode(path.read_bytes()).decode()) >= 1 for path in files.values())
    seen = {path.read_bytes() for path in files.values()}
    assert text.count("data:image/png;base64,iVBOR") == len(files) > len(seen)  # two black pictures of one prompt
    monkeypatch.setattr(gallery, "MOST_BYTES", sum(path.stat().st_size for name, path in files.items() if "s0" in name))
    some = gallery.of(View.open(run))
    exact = {picture.alt for pictures in some.rows.values() for picture in pictures if picture.exact}
    assert exact == {f"{name}, prompt 0, seed 0" for name in ("reference", "baseline", "ffn_scaling")} | {
        f"float16, prompt 0, seed 0, {gallery.NOT_FINITE}"
    }
    assert list(some.cases) == [(0, 0)]
    assert some.thumbnails == len(files) - len(exact)
    monkeypatch.setattr(gallery, "MOST_BYTES", 0)
    assert 'id="compare-pictures"' not in report.write(run).read_text(encoding="utf-8")


def test_the_conclusion_has_a_sentence_for_each_claim_with_effect_and_interval(small_run):
    run = small_run(blocks=2, steps=2)
    summary = Summary.read(run)
    first, *others = summary.claims
    first = replace(first, effect=Quantity(18.5), ci95=(14.6, 23.4), relation="larger", bound=None, metric="drift")
    lost = replace(others[0], effect=Quantity(None, "too few pairs"), ci95=None)
    replace(summary, claims=[first, lost, *others[1:]]).write(run)
    view = View.open(run)
    told = conclusion.sentences(view)
    assert [sentence.id for sentence in told] == [claim.id for claim in (first, lost, *others[1:])]
    assert told[0].evidence == "a factor of 18.5, 95\u00a0% interval 14.6 to 23.4"
    assert told[1].evidence == "too few pairs"
    assert conclusion.question(view).endswith("?")
    replace(summary, claims=[]).write(run)
    assert "drifts least from the reference" in conclusion.drift(View.open(run))


def test_the_parts_of_the_page_are_in_the_order_of_a_reader(page):
    ids = [attrs["id"] for _, attrs in page.found if "id" in attrs]
    order = ["conclusion", "figure-images", "figure-growth", "figure-drift_steps", "headroom", "variants"]
    places = [ids.index(name) for name in [*order, "figure-latency", "claims", "figure-claims", "method"]]
    assert all(before < after for before, after in pairwise(places))


def test_every_template_names_its_sections_and_the_cells_of_its_cards():
    for template in (Path(report.__file__).parent / "templates").glob("*.html"):
        text = template.read_text(encoding="utf-8")
        assert not re.search(r"<section(?! id=)", text), template
        if ('class="cards' not in text and "sortable cards" not in text) or template.name == "table.html":
            continue
        cells = re.findall(r"<td[ >][^\n]*?(?:</td>|$)", text, re.MULTILINE)
        assert all("data-label" in cell or "colspan" in cell or cell == "<td></td>" for cell in cells), template
