"""Labels of figures: distinct, legible, in their place; lines with gaps; captions of what is drawn."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from precision_lab.report.figures import (
    claim_forest,
    device,
    drift,
    drift_surface,
    factorial,
    growth,
    images,
    labels,
    latency,
    style,
    surface,
    variant_forest,
)
from precision_lab.report.view import View
from tests.report.test_factorial_page import factorial as record
from tests.report.test_factorial_page import with_factorials

NAMES = st.lists(st.text("ab_+", max_size=70), max_size=9, unique=True)
MANY = ("reference", "baseline", *(f"baseline+fp32_residual+fp32_{part}modulation+fp32_norms" for part in "abcdefgh"))
ABSENT = re.compile(r"Teacher-forced|Local|Crosses|Hatched|White lines|Black squares")
TINY = {"blocks": 3, "steps": 2, "seeds": (0,)}


@given(NAMES, st.integers(12, 40), st.integers(1, 3))
def test_no_two_names_have_the_same_label(names, length, lines):
    assert len(set(labels.distinct(names, length).values())) == len(names)
    assert all(len(label) <= length for label in labels.distinct(names, length).values())
    folded = labels.folded(names, length, lines)
    assert len(set(folded.values())) == len(names)
    assert all(len(line) <= length for label in folded.values() for line in label.split("\n"))


@pytest.mark.parametrize(
    "colour", [*style.PALETTE, style.REFERENCE, *device.COLOURS.values(), *device.VERDICTS.values()]
)
def test_the_name_of_a_variant_can_be_read_on_the_paper_of_figures(colour):
    assert style.contrast(style.ink(colour), "white") >= 4.5
    assert style.contrast("black", "white") == pytest.approx(21)
    assert style.contrast("#777777", "white") == pytest.approx(4.48, abs=0.005)  # WebAIM's calculator
    assert min(style.contrast(ink, "white") for ink in (style.INK, style.MUTED)) >= 4.5


def test_a_line_has_a_gap_where_nothing_was_measured():
    axes = Figure().subplots()
    summary = pd.DataFrame(
        {name: [1.0, 2.0, 4.0, 3.0] for name in ("median", "min", "max")}, index=[0.0, 1.0, 3.0, 5.0]
    )
    style.draw_band(axes, style.looks(["a"], "")["a"], summary)
    line, points = axes.lines
    assert np.isnan(line.get_ydata()).tolist() == [False, False, True, False, True, False]
    assert points.get_xdata().tolist() == [3, 5], "a value between gaps is a point"


def test_the_local_error_of_sampled_steps_has_gaps(small_run):
    folder = small_run(steps=6, blocks=2, overflowing=())
    table = pd.read_parquet(folder / "drift.parquet")
    free = table[table["mode"] == "free"]
    pd.concat([free, free[free["step"].isin([0, 3, 5])].assign(mode="teacher")]).to_parquet(folder / "drift.parquet")
    free, teacher = drift.draw_steps(View.open(folder)).figure.axes
    assert not any(np.isnan(line.get_ydata()).any() for line in free.lines)
    assert all(np.isnan(line.get_ydata())[[1, 2, 4]].all() for line in teacher.lines if len(line.get_xdata()) == 6)


def test_captions_say_nothing_of_what_is_not_drawn(small_run):
    whole = View.open(small_run("whole", **TINY, overflowing=("float16",)))
    plain = View.open(small_run("plain", **TINY, teacher=False, overflowing=(), variants=("reference", "baseline")))
    for draw in (drift.draw_steps, drift.draw_blocks, drift_surface.draw, surface.draw, growth.draw, images.draw):
        assert ABSENT.search(draw(whole).caption)
        assert not ABSENT.search(draw(plain).caption), draw
    alone = View.open(small_run("alone", **TINY, variants=("reference",), overflowing=()))
    drawing = growth.draw(alone)
    assert "Below" not in drawing.caption
    assert len(drawing.figure.axes) == len(alone.layout.streams)


def test_every_panel_of_a_heat_map_has_numbers_at_its_ticks(small_run):
    view = View.open(small_run(**TINY, variants=("reference", "a", "b"), overflowing=()))
    with style.theme():
        for drawing in (surface.draw(view), drift_surface.draw(view)):
            panels = [axes for axes in drawing.figure.axes if axes.images]
            assert len(panels) >= 3
            for axes in panels:
                for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
                    assert any(label.get_visible() and label.get_text() for label in ticks)


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of titles, axis labels and annotations that cover each other."""
    figure.draw_without_rendering()
    texts = []
    for axes in (axes for axes in figure.axes if axes.axison):
        found = [axes.title, axes._left_title, axes._right_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        texts += [text for text in found if text.get_text().strip() and text.get_visible()]
        texts += [label for label in axes.get_yticklabels() if label.get_visible() and label.get_text()]
    boxes = [text.get_window_extent().padded(-1) for text in texts]
    return [
        (texts[i].get_text(), texts[j].get_text())
        for i in range(len(texts))
        for j in range(i)
        if boxes[i].overlaps(boxes[j])
    ]


def test_labels_do_not_cover_each_other_nor_repeat(small_run):
    run = small_run(**TINY, variants=MANY, overflowing=(), teacher=False)
    effects = [{**record()["effects"][0], "factors": list(MANY[2 : 2 + n])} for n in (1, 2, 3)]
    view = View.open(with_factorials(run, record(effects=effects)))
    with style.theme():
        for draw in (variant_forest.draw, claim_forest.draw, factorial.draw, images.draw, latency.draw, surface.draw):
            figure = draw(view).figure
            assert not overlapping(figure), draw
            rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
            assert draw is surface.draw or len(set(rows)) == len(rows)
