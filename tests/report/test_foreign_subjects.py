"""Pages of subjects that are not Qwen-Image: the report takes what it knows of a model from the layout of the run."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from precision_lab import report
from precision_lab.record.layout import Layout, Stream
from precision_lab.record.manifest import Manifest
from precision_lab.report.figures import contributions, drift, growth, style, surface
from precision_lab.report.figures.style import Absent
from precision_lab.report.view import View
from tests.report.foreign_run import LANGUAGE, PERCEPTRON, THREE, fabricate, write_table
from tests.report.test_page import Resources, text_of

PACKAGE = Path(report.__file__).parent
OVER_BLOCKS = {"growth", "surface", "contributions", "drift_blocks", "drift_surface"}
DRAWN = {
    "perceptron": (PERCEPTRON, {"drift_steps"}),
    "language": (LANGUAGE, {"drift_steps", "divergence_steps"} | OVER_BLOCKS),
    "three": (THREE, {"drift_steps"} | OVER_BLOCKS),
}
OF_A_MODEL = (
    *("transformer", "transformer_blocks", "text_encoder", "vae", "pipeline", "img", "txt", "cond", "uncond"),
    *("euler_step", "to_pixels", "latents", "denoising", "guidance", "height", "width", "inflate", "_add1", "norm_out"),
)
MATPLOTLIB = {"width", "height", "pad"}  # arguments of drawing functions too
HTML = r'role="img"|img-src'  # a role of an element, a directive of a content security policy


@pytest.fixture(scope="module", params=list(DRAWN))
def page(request, tmp_path_factory, unrendered_module) -> tuple[Layout, set[str], Path]:
    layout, figures = DRAWN[request.param]
    return layout, figures, report.write(fabricate(tmp_path_factory.mktemp("foreign") / "run", layout))


@pytest.mark.parametrize(
    "name", ["perceptron", *(pytest.param(n, marks=pytest.mark.slow) for n in ("language", "three"))]
)
def test_every_figure_is_written(name, tmp_path):
    layout, figures = DRAWN[name]
    page = report.write(fabricate(tmp_path / "run", layout))
    files = {path.name: path.stat().st_size for path in (page.parent / "figures").iterdir()}
    assert set(files) == {f"{figure}.{kind}" for figure in figures for kind in ("png", "svg")}
    assert min(files.values()) > 5_000


def test_every_figure_that_belongs_is_drawn_and_no_other(page):
    _, figures, html = page
    assert {path.stem for path in (html.parent / "figures").iterdir()} == figures
    assert not Resources(html.read_text(encoding="utf-8")).open


def test_the_page_uses_the_words_of_the_layout(page):
    layout, _, html = page
    text = text_of(html)
    assert f"Drift of the {layout.result.title} over the steps" in text
    assert ("PSNR" in text) == ("SSIM" in text) == ("Pictures" in text) == bool(layout.picture)
    assert ("final amax" in text) == bool(layout.streams)
    assert ("KL divergence" in text) == layout.result.distribution
    for words in (*(stream.title for stream in layout.streams.values()), *layout.branches, layout.level):
        assert words in text
    for absent in ("latents", "transformer", "image stream", "text stream", "σ", "guidance"):
        assert absent not in text


def test_settings_and_declared_columns_are_listed_as_they_are(page):
    text = text_of(page[2])
    for name, value in (("steps", "6"), ("temperature", "not set"), ("stop", "a, b")):
        assert f'<th scope="row">{name}</th><td>{value}</td>' in text
    assert "bits 4, tied true" in text
    assert "Columns that probes add to the table activations" in text
    assert "<b>kurtosis (1)</b></dt> <dd>fourth standardised moment</dd>" in text


def test_metrics_are_columns_of_the_table_of_variants(page):
    layout, _, html = page
    text = text_of(html)
    assert ("KL divergence<small>nats, mean over steps; lower is better</small>" in text) == layout.result.distribution
    assert ("perplexity ratio" in text) == ("one token" in text) == layout.result.distribution


@pytest.mark.parametrize("count", [1, 2, 3])
def test_growth_has_a_panel_for_each_stream_and_ends_beside_the_first(tmp_path, count):
    layout = replace(THREE, streams=dict(list(THREE.streams.items())[:count]))
    with style.theme():
        drawing = growth.draw(View.open(fabricate(tmp_path / "run", layout)))
    upper = drawing.figure.axes[:count]
    titles = [axes.get_title(loc="left").strip() for axes in upper]
    assert titles == ["Audio stream", "Video stream", "Caption stream"][:count]
    words = [[text.get_text() for text in axes.texts] for axes in upper]
    assert words == [["norm"], [], []][:count]
    assert drawing.caption.endswith("Points beside the blocks: norm on the right.")
    assert "; branch guided (with the condition)." in drawing.caption


def test_only_the_main_branch_is_drawn(tmp_path):
    run = fabricate(tmp_path / "run", THREE)
    whole = surface.draw(View.open(run)).figure.axes[0].images[0].get_array()
    view = View.open(run)
    frame = view.run.activations
    frame.loc[frame["branch"] == "free", "amax"] *= 1e6
    changed = surface.draw(view).figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(whole, changed)


def test_divergence_is_drawn_in_the_column_kl(tmp_path):
    view = View.open(fabricate(tmp_path / "run", LANGUAGE, seeds=(0,)))
    drawing = drift.draw_divergence(view)
    free, teacher = drawing.figure.axes[:2]
    assert free.get_ylabel().startswith("KL in nats, free-running")
    rows = view.drift[(view.drift["site"] == "lm_head") & (view.drift["variant"] == "coarse")]
    for axes, mode in ((free, "free"), (teacher, "teacher")):
        np.testing.assert_allclose(axes.lines[1].get_ydata(), rows.loc[rows["mode"] == mode, "kl"])
    assert "nats" in drawing.caption
    assert "lower is better" in drawing.caption


def test_a_result_without_divergence_has_no_such_figure(tmp_path):
    run = fabricate(tmp_path / "run", LANGUAGE)
    write_table(run, "drift", View.open(run).run.drift.drop(columns="kl"))
    assert drift.draw_divergence(View.open(run)) is None
    manifest = Manifest.read(run)
    plain = replace(manifest.layout, result=replace(manifest.layout.result, distribution=False))
    replace(manifest, layout=plain).write(run)
    assert drift.draw_divergence(View.open(run)) is None


def test_a_variant_of_equal_distribution_is_said_to_have_none(tmp_path):
    run = fabricate(tmp_path / "run", LANGUAGE)
    frame = View.open(run).run.drift
    frame.loc[frame["variant"] == "baseline", "kl"] = 0.0
    write_table(run, "drift", frame)
    labels = [text.get_text() for text in drift.draw_divergence(View.open(run)).figure.legends[0].get_texts()]
    assert labels == ["baseline (0 throughout)", "coarse"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_contributions_follow_the_adds_of_the_layout(tmp_path, count):
    layout = replace(LANGUAGE, adds=dict.fromkeys(("a", "b", "c")[:count], "layers.*.{mixed,fed}"))
    with style.theme():
        (axes,) = contributions.draw(View.open(fabricate(tmp_path / "run", layout))).figure.axes
    assert len(axes.containers) == count
    heights = [bar.get_height() for bars in axes.containers for bar in bars]
    assert heights == pytest.approx([0.9 / layout.depth] * layout.depth * count)
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bars in axes.containers for bar in bars)
    assert all(right <= left + 1e-9 for (_, right), (left, _) in itertools.pairwise(edges))
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(1)


def test_without_streams_growth_says_why_it_is_absent(tmp_path):
    view = View.open(fabricate(tmp_path / "run", PERCEPTRON))
    drawing = growth.draw(view)
    assert isinstance(drawing, Absent)
    assert "no residual streams" in drawing.reason
    assert surface.draw(view) is drift.draw_blocks(view) is contributions.draw(view) is None


def test_streams_of_a_model_that_records_no_blocks_are_absent(tmp_path):
    run = fabricate(tmp_path / "run", PERCEPTRON)
    manifest = Manifest.read(run)
    replace(manifest, layout=replace(PERCEPTRON, streams={"hidden": Stream("hidden stream")})).write(run)
    for draw in (growth.draw, surface.draw, drift.draw_blocks):
        assert isinstance(draw(View.open(run)), Absent)
    report.write(run)


def test_an_unfinished_run_is_described_by_its_manifest(tmp_path, unrendered):
    run = fabricate(tmp_path / "run", LANGUAGE)
    (run / "summary.json").unlink()
    replace(Manifest.read(run), status="running").write(run)
    text = text_of(report.write(run))
    assert "This run is not finished" in text
    assert text.count("weights as stored") == 3
    assert "have not been judged yet" in text


def test_the_report_knows_no_particular_model():
    """Strings of the code, docstrings left out, and the templates; `history_map` sorts operations by parts of names."""
    wrong = []
    for file in (*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.html")):
        texts = strings(file) if file.suffix == ".py" else [re.sub(r"<[^>]*>", "", file.read_text(encoding="utf-8"))]
        for text in texts:
            words = set(re.findall(r"[A-Za-z0-9_]+", re.sub(HTML, "", text))) - MATPLOTLIB
            wrong += [f"{file.relative_to(PACKAGE)}: {word} in {text[:60]!r}" for word in words & set(OF_A_MODEL)]
    assert not wrong


def strings(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield node.value
