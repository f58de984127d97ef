"""The page of a run opens in a browser without a fault, and for every reader."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(page, reported, theme):
    page.open(reported, theme=theme)
    assert page.axe("serious", "critical") == []


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
