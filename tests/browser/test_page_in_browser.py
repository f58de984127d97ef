"""The page of a run opens in a browser without a fault, and for every reader."""

from __future__ import annotations

import pytest

from precision_lab.cli import main


# in dark, axe reads this page by default in test_explorer.py
@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_nothing_serious(page, reported, theme):
    page.open(reported, theme=theme)
    assert page.axe("moderate", "serious", "critical") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "run", [("+exp=recipes", "prompts=[two red circles on a blue background]"), ("+exp=findings", "model=micro_21")]
)
def test_pages_of_many_variants_and_of_another_model(page, tmp_path, run):
    folder = tmp_path / "run"
    assert main([*run, "seeds=[0]", "sampler.steps=1", "latency.max_rounds=0", f"out={folder}"]) in (0, 1)
    report = folder / "report.html"
    assert report.stat().st_size < 20_000_000
    for width in (1120, 420):
        for theme in ("light", "dark"):
            page.open(report, width=width, theme=theme)
            assert page.axe("moderate", "serious", "critical") == []
            assert page.js("return document.documentElement.scrollWidth") <= width


def test_on_a_phone_the_values_beside_each_other_share_a_line(page, reported):
    page.open(reported, width=420)
    bottoms = page.js("""
        const range = document.createRange();
        const bottom = (cell) => (range.selectNodeContents(cell), Math.round(range.getBoundingClientRect().bottom));
        return [...document.querySelectorAll('#explorer-sites tbody tr:nth-child(-n+3)')]
          .map((row) => [...row.querySelectorAll('td')].map(bottom));
    """)
    assert len(bottoms) == 3
    for row in bottoms:
        assert all(len(set(row[at : at + 3])) == 1 for at in range(0, len(row), 3))
        assert len(set(row)) == -(-len(row) // 3)


def test_what_a_page_must_not_do_is_found(page, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<title>bad</title><img src="http://127.0.0.1:9/x.png"><script>console.warn("odd"); nothing()</script>',
        encoding="utf-8",
    )
    page.open(bad)
    faults = " | ".join(page.faults())
    for part in ("odd", "nothing is not defined", "request: http://127.0.0.1:9/x.png"):
        assert part in faults
    assert any("image-alt" in finding for finding in page.axe("critical"))


def test_on_paper_all_text_of_a_table_is_of_one_size_and_lines_keep_their_colours(page, reported):
    page.open(reported, width=720)
    page.command("Emulation.setEmulatedMedia", {"media": "print"})
    sizes = page.js(
        "return [...document.querySelectorAll('#headroom table *, #variants table *')].filter(e => e.innerText)"
        ".map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 8
    assert max(sizes) <= 8.5
    swatch = page.find("#variants .swatch")
    assert page.js("return getComputedStyle(arguments[0]).printColorAdjust", swatch) == "exact"
    assert page.js("return document.documentElement.scrollWidth") <= 720
    page.command("Emulation.setEmulatedMedia", {"media": ""})
