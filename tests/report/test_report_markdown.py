"""The Markdown and the badge of a run: what a renderer of GitHub's Markdown shows, and how large it is."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from precision_lab.analysis.markdown import link, literal, source, table
from precision_lab.errors import visible
from precision_lab.record.gate import GateVerdict
from precision_lab.record.manifest import Manifest
from precision_lab.record.run import Run
from precision_lab.record.summary import Quantity, Summary
from precision_lab.report import badge, markdown
from precision_lab.report.figures.style import contrast
from tests.report.test_page import edit, edit_variants

RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
HOSTILE = "a|b `c` <script>x</script> *d* _e_ ~~f~~ $g$ &lt; [h](https://x) [i]: y @somebody #12\n\n# j \\|\x1b[2J"


def texts(source_text: str) -> list[str]:
    """The text of each inline block; anything but text and comments in it fails."""
    found = []
    for token in RENDERER.parse(source_text):
        if token.type == "inline":
            kinds = {(child.type, child.content) for child in token.children if child.type != "text"}
            assert kinds <= {("html_inline", "<!-- -->"), ("softbreak", "")}, kinds
            found.append("".join(child.content for child in token.children if child.type == "text"))
    return found


def plain(text: str) -> str:
    return visible(" ".join(text.split()))


@pytest.mark.parametrize("text", [HOSTILE, "a_b __c__ _", "\\", "[a]: <b>", "&amp;amp;", "a@b @a #1", "![a](b)", "x`"])
def test_a_cell_shows_what_it_was_given(text):
    lines = table(("name", "n"), [(text, "1"), ("b", text)], {"n"})
    assert texts(lines) == ["name", "n", plain(text), "1", "b", plain(text)]
    assert len(lines.splitlines()) == 4


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text("ab_*`|\\<>&;#@[]():~$!-.1 \n\té", min_size=1, max_size=24).filter(str.strip))
def test_any_text_is_literal(text):
    assert texts(f"- x {literal(text)} x") == [f"x {plain(text)} x"]
    assert texts(table((text,), [])) == [plain(text)]


def test_nobody_is_notified_and_no_issue_is_linked():
    found = literal("@somebody owner/name#12 a@b.c # 1")
    assert not re.search(r"@\w|#\d", found)


@pytest.mark.parametrize("target", ["https://x.org/a(b)|c d?e=1&copy=2", "../a b/#1/report.html", "https://x/<b>`"])
def test_a_link_leads_where_it_says(target):
    (_, inline, _) = RENDERER.parse(f"{link('a|b', target)} end")
    opened = inline.children[0]
    assert opened.type == "link_open"
    assert not set(opened.attrs["href"]) & set(" <>|`")
    assert [child.type for child in inline.children[1:]] == ["text", "link_close", "text"]


def test_only_addresses_are_sources_that_are_linked():
    assert source("https://x.org/a").startswith("[source](https://x.org/a)")
    assert source("javascript:alert(1)") == "javascript:alert(1)"
    assert source("https://x.org/ two words") == "https://x.org/ two words"


def of(run, reasons=()) -> str:
    opened = Run.open(run)
    return markdown.of_run(opened, opened.summary, reasons)


def test_a_run_says_what_its_summary_says(small_run):
    run = small_run()
    text = of(run)
    assert text.startswith("## ffn_scaling: full_synthetic, generated weights\n")
    assert "commit 4f1c9d2ab8 with local changes · Apple M4 Max" in text
    summary = Summary.read(run)
    for claim in summary.claims:
        (line,) = [line for line in text.splitlines() if line.startswith("- ") and claim.id in line]
        assert line.startswith(f"- **{claim.verdict}**")
        assert f"noise floor {claim.noise_floor.value:.3g}"[:16] in line
        assert "interval" in line
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(summary.variants)
    assert "slower" in rows[0] or "faster" in rows[0]
    assert "report.html" not in text
    (run / "report.html").touch()
    assert "[report.html](report.html)" in of(run)


def test_hostile_entries_do_not_leave_their_place(small_run):
    run = small_run()
    summary = Summary.read(run)
    claims = [replace(summary.claims[0], id=HOSTILE, text=HOSTILE, source=HOSTILE, verdict_reason=HOSTILE)]
    replace(summary, claims=claims).write(run)
    edit_variants(run, baseline={"error": HOSTILE, "techniques": [HOSTILE], "psnr_db": Quantity(None, HOSTILE)})
    checkpoint = replace(Manifest.read(run).checkpoint, name=HOSTILE, notes=[HOSTILE])
    edit(run, checkpoint=checkpoint, command=[HOSTILE])
    tokens = RENDERER.parse(of(run, [HOSTILE]))
    assert {token.type for token in tokens if token.type.endswith("_open")} <= {
        *("heading_open", "paragraph_open", "bullet_list_open", "list_item_open", "table_open", "thead_open"),
        *("tbody_open", "tr_open", "th_open", "td_open"),
    }
    inline = {child.type for token in tokens for child in token.children or ()}
    assert inline <= {"text", "strong_open", "strong_close", "link_open", "link_close", "html_inline", "softbreak"}
    assert sum(token.type == "heading_open" for token in tokens) == 1


def test_29_variants_and_long_texts_fit_a_comment(small_run):
    names = ("reference", *(f"float16_with_the_scales_of_another_implementation_{i}" for i in range(28)))
    run = small_run(variants=names, overflowing=(), blocks=2, steps=1, seeds=(0,))
    assert len(of(run).encode()) < 10_000
    summary = Summary.read(run)
    long = [replace(summary.claims[0], id=f"C{i}", text="@1 " * 5000) for i in range(200)]
    replace(summary, claims=long).write(run)
    edit_variants(run, **{name: {"error": "|#1" * 9000} for name in names})
    text = of(run, ["* " * 9000] * 50)
    assert len(text) < 65_536
    assert "more rows" in text
    assert text.count("- and ") == 2


def test_an_unfinished_run_and_a_failed_gate_say_so(small_run):
    run = small_run()
    edit(run, status="interrupted", finished=None)
    (run / "gate.json").write_text(json.dumps({"passed": False, "violations": [{}, {}]}))
    text = of(run, ["claim S3 is refuted"])
    assert "**interrupted: this run was not finished" in text
    assert "**Exit code 1**\n\n- claim S3 is refuted" in text
    assert "**Gate failed**, 2 deviations" in text


def badge_of(run, reasons=(), judged=None):
    return badge.of_run(Manifest.read(run), Summary.read(run).claims, reasons, judged)


def test_a_badge_is_small_accessible_and_states_the_weights(small_run, tmp_path):
    run = small_run()
    svg, shields = badge.write(badge_of(run), tmp_path)
    tree = ElementTree.parse(svg)
    title = tree.find("{http://www.w3.org/2000/svg}title").text
    assert title == "ffn_scaling: 1 refuted, 1 inconclusive, 1 supported (generated weights)"
    assert tree.getroot().get("aria-label") == title
    assert tree.getroot().get("role") == "img"
    content = json.loads(shields.read_text())
    assert content == {"schemaVersion": 1, "label": "ffn_scaling", "message": title[13:], "color": badge.ORANGE}
    text = svg.read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "url(" not in text.replace("url(#corners)", "")
    before = svg.read_bytes(), shields.read_bytes()
    badge.write(badge_of(run), tmp_path)
    assert (svg.read_bytes(), shields.read_bytes()) == before


def test_the_colour_of_a_badge_is_in_its_words(small_run):
    run = small_run()
    supported = [replace(claim, verdict="supported") for claim in Summary.read(run).claims]
    manifest = Manifest.read(run)
    assert badge.of_run(manifest, supported, ()).colour == badge.GREEN
    assert badge.of_run(manifest, (), ()).colour == badge.GREY
    assert "no claims" in badge.of_run(manifest, (), ()).message
    failed = badge_of(run, ["claim S3 is refuted"])
    assert (failed.colour, failed.message.split(",")[0]) == (badge.RED, "exit code 1")
    gated = badge.of_run(manifest, supported, (), GateVerdict(False, 3))
    assert (gated.colour, gated.message.split(",")[0]) == (badge.RED, "gate failed")
    running = badge.of_run(replace(manifest, status="running"), supported, ())
    assert (running.colour, running.message.split(",")[0]) == (badge.GREY, "running")
    for colour in (badge.GREEN, badge.ORANGE, badge.RED, badge.GREY):
        assert contrast("white", colour) >= 4.5
