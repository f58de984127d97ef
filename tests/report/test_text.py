"""Text of users in figures and on the page: shown as it is written, never read as mathtext or HTML."""

from __future__ import annotations

import json

import pytest
from matplotlib.text import Text

from precision_lab.report import wording, write
from precision_lab.report.embedding import ALWAYS, FIRST, source
from precision_lab.report.figures import claim_forest, growth, style
from precision_lab.report.gallery import SCRIPTS
from precision_lab.report.page import EXPLORER
from precision_lab.report.sections import Section

HOSTILE = "$5 and $6 of [matmul] <script>alert(1)</script> {{ 7*7 }} $\\frac{1$ ${oops}$"
ESCAPED = "$5 and $6 of [matmul] &lt;script&gt;alert(1)&lt;/script&gt; {{ 7*7 }} $\\frac{1$ ${oops}$"


@pytest.fixture
def hostile_run(small_run):
    """A run whose prompts, claims, errors and configuration hold text that markup languages would read."""
    folder = small_run(prompts=(HOSTILE,))
    manifest = json.loads((folder / "manifest.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    manifest["errors"] = {"baseline": HOSTILE}
    manifest["checkpoint"]["name"] = HOSTILE
    summary["variants"]["baseline"]["error"] = HOSTILE
    for claim in (*manifest["claims"], *summary["claims"]):
        claim["text"] = claim["source"] = HOSTILE
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(HOSTILE)
    return folder


def test_a_report_shows_text_as_it_is_written(hostile_run, unrendered):
    page = write(hostile_run).read_text(encoding="utf-8")
    for name in (*FIRST, *ALWAYS, *EXPLORER, *SCRIPTS):
        page = page.replace(f"<script>{source(name)}</script>", "", 1)
    assert "<script>" not in page
    page = page.replace("<wbr>", "")  # where a long source may break
    manifest = json.loads((hostile_run / "manifest.json").read_text())
    claims, cases = len(manifest["claims"]), len(manifest["seeds"])
    assert page.count(ESCAPED) == 3 * claims + 5 + cases, (
        "claims, concluded on too, and sources; prompt, error, checkpoint, in the question too, configuration; the "
        "choice of a case in the viewer"
    )


@pytest.mark.parametrize(
    "draws", [(growth.draw, claim_forest.draw), pytest.param((), marks=pytest.mark.slow)], ids=["two figures", "all"]
)
def test_figures_read_nothing_as_mathtext(hostile_run, monkeypatch, drawing_only, draws):
    if draws:
        drawing_only(*draws)
    texts = []
    save = style.save

    def collecting(drawing, folder):
        files = save(drawing, folder)
        texts.extend((text.get_text(), text.get_parse_math()) for text in drawing.figure.findobj(Text))
        return files

    monkeypatch.setattr(style, "save", collecting)
    write(hostile_run)
    assert any(text.replace("\n", " ").startswith("$5 and $6 of [matmul]") for text, _ in texts), "the text of a claim"
    assert not any(read for text, read in texts if "$" in text)


@pytest.mark.parametrize("scale", ["log", "symlog"])
def test_tick_labels_of_wide_axes_are_powers_of_ten(tmp_path, scale):
    with style.theme():
        figure = style.new_figure(3.0)
        axes = figure.subplots()
        axes.set_yscale(scale)
        axes.set_ylim(1, 1e9)
        axes.set_title("$5 and $6")
        if scale == "log":
            style.log_ticks(axes.yaxis, 1, 1e9)
        style.save(style.Drawing("figure", "", figure, ""), tmp_path)
        labels = [label for label in axes.get_yticklabels() if label.get_text()]
    assert len(labels) >= 4
    assert all(label.get_text().startswith("10") or label.get_text() in ("0", "1") for label in labels)
    assert not any("$" in label.get_text() or label.get_parse_math() for label in labels)
    assert not axes.title.get_parse_math()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("within 95 % of 17.2 MiB", "within 95_% of 17.2_MiB"),
        ("12.3 ms, 4 s or 48.4 dB", "12.3_ms, 4_s or 48.4_dB"),
        ("3 steps, 4 seeds, 2 dbs and 1 block", "3 steps, 4 seeds, 2 dbs and 1 block"),
        ("blocks.1 (out.0), step 0, cond, prompt 2, seed 7", "blocks.1 (out.0), step_0, cond, prompt_2, seed_7"),
    ],
)
def test_a_number_stays_with_its_unit(text, kept):
    assert wording.unbroken(text) == kept.replace("_", "\N{NO-BREAK SPACE}")


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("fp32_norm/blocks.0.attn.to_q", "fp32_|norm/|blocks.|0.|attn.|to_|q"),
        ("0.00716 of 12.5 bits, v1.2.", "0.00716 of 12.5 bits, v1.2."),
        ("a&b_c", "a&amp;b_|c"),
        ("blocks.37.img_mlp (out.1), step 0", "blocks.|37.|img_|mlp (out.1), step 0"),
    ],
)
def test_a_line_may_break_in_a_name_but_not_in_a_number(name, pieces):
    assert str(wording.breakable(name)) == pieces.replace("|", "<wbr>")


@pytest.mark.parametrize(
    ("row", "numeric", "short"),
    [
        (("key", "float16", "a long text of a cell", "same"), (), {1, 3}),
        (("key", "a longer text of a cell", "a long text of a cell", "same"), (), set()),
        (("key", "a longer text of a cell", "3", "same"), (2,), {3}),
    ],
)
def test_columns_of_few_letters_stand_side_by_side_where_there_are_two(row, numeric, short):
    assert Section("", columns=("what", "a", "b", "verdict"), rows=[row], numeric=frozenset(numeric)).short == short
