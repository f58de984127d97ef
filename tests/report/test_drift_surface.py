"""Surfaces of drift: which cells are coloured, hatched or left, and which variants are shown."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from precision_lab.report.figures import drift_surface, style
from precision_lab.report.figures.style import Absent, Drawing
from precision_lab.report.view import View
from tests.spread import slow


def rewritten(run, change):
    """The run as it is after `change` of its drift table."""
    path = run / "drift.parquet"
    change(pd.read_parquet(path)).to_parquet(path)
    return View.open(run)


def with_text(drift, factor=3.0):
    """The text stream too, `factor` times as far from the reference as the image stream."""
    blocks = drift[drift["block"].notna()]
    text = blocks.assign(port="out.1", stream="txt", rel_l2=blocks["rel_l2"] * factor)
    return pd.concat([drift, text], ignore_index=True)


def panels(run):
    with style.theme():
        drawing = drift_surface.draw(run)
        assert isinstance(drawing, Drawing)
        drawing.figure.draw_without_rendering()
    return drawing, [axes for axes in drawing.figure.axes if axes.images]


def colours(axes):
    return np.asarray(axes.images[0].get_array())


def test_panels_are_modes_by_streams_and_share_one_scale(small_run):
    run = rewritten(small_run(overflowing=()), with_text)
    _, drawn = panels(run)
    assert [axes.get_title(loc="left") for axes in drawn[:4]] == [
        f"{mode}\n{stream}" for mode in ("Accumulated", "Local") for stream in ("image stream", "text stream")
    ]
    assert len(drawn) == 4 * 3  # variants down
    assert {colours(axes).shape[:2] for axes in drawn} == {(3, 6)}
    rows = run.drift[run.drift["block"].notna()]
    median = rows.groupby(["variant", "mode", "port", "step", "block"])["rel_l2"].median()
    norm = drift_surface._norm(median.to_numpy())
    expected = drift_surface.colormaps[drift_surface.COLOURS](norm(median["baseline", "free", "out.1", 2, 5]))
    np.testing.assert_allclose(colours(drawn[1])[2, 5], expected, atol=0.02)


def test_what_is_lost_is_hatched_and_what_is_identical_has_a_colour_of_its_own(small_run):
    def change(drift):
        drift = with_text(drift)
        drift.loc[(drift["variant"] == "baseline") & (drift["block"] == 1), "rel_l2"] = 0.0
        one = (drift["variant"] == "baseline") & (drift["block"] == 2) & (drift["seed"] == 5)
        drift.loc[one, ["rel_l2", "num_nonfinite"]] = [np.nan, 7]
        return drift

    drawing, drawn = panels(rewritten(small_run(), change))
    for axes in drawn[:4]:
        cells = colours(axes)
        np.testing.assert_allclose(cells[:, 1], np.tile(to_rgba(drift_surface.IDENTICAL), (3, 1)))
        assert (cells[:, 2, 3] == 0).all(), "lost in one of two generations"
        assert (cells[:, [0, 3, 4, 5], 3] == 1).all()
        assert any(patch.get_hatch() for patch in axes.patches)
    labels = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert labels == ["not finite in at least one generation", "identical to the reference"]


def test_sampled_steps_stand_apart_with_their_own_numbers(small_run):
    run = rewritten(
        small_run(steps=50, overflowing=(), variants=("reference", "baseline")),
        lambda drift: drift[(drift["mode"] == "free") | drift["step"].isin([0, 25, 49])],
    )
    _, (accumulated, local) = panels(run)
    assert colours(accumulated).shape[:2] == (50, 6)
    assert colours(local).shape[:2] == (3, 6)
    assert [label.get_text() for label in local.get_yticklabels()] == ["0", "25", "49"]
    assert len(local.lines) == 2
    assert not accumulated.lines


@pytest.mark.parametrize(("blocks", "steps"), [slow((1, 2)), (60, 2), (1, 50)])
def test_any_size(small_run, blocks, steps):
    run = rewritten(small_run(blocks=blocks, steps=steps, seeds=(0,)), with_text)
    _, drawn = panels(run)
    assert {colours(axes).shape[:2] for axes in drawn} == {(steps, blocks)}


def test_a_variant_without_local_error_is_said_to_have_none(small_run):
    run = rewritten(small_run(), lambda d: d[(d["mode"] == "free") | (d["variant"] != "baseline")])
    _, drawn = panels(run)
    words = [[text.get_text() for text in axes.texts] for axes in drawn]
    assert [at for at, own in enumerate(words) if "not measured" in own] == [1]


def test_many_variants_are_the_telling_ones(small_run):
    names = ("reference", "a", "baseline", "ffn_scaling", "b", "c", "float16")

    def change(drift):
        drift.loc[drift["variant"] == "b", "rel_l2"] *= 0.01
        return drift

    run = rewritten(small_run(variants=names), change)
    drawing, drawn = panels(run)
    first = drawn[:: len(drawn) // 4]
    shown = [text.get_text() for axes in first for text in axes.texts if text.get_weight() == "bold"]
    assert shown[1:] == ["ffn_scaling", "b", "float16"]
    assert "of 6 variants" in drawing.caption


def test_nothing_to_draw(small_run):
    run = small_run(overflowing=())
    assert isinstance(drift_surface.draw(rewritten(run, lambda drift: drift.assign(rel_l2=0.0))), Absent)
    assert drift_surface.draw(rewritten(run, lambda drift: drift[drift["block"].isna()])) is None


@pytest.mark.parametrize(
    ("modes", "title"),
    [
        (("free", "teacher"), "Where error accumulates and where it is made"),
        (("free",), "Where error accumulates"),
        (("teacher",), "Where error is made"),
    ],
)
def test_the_title_names_what_is_drawn(small_run, modes, title):
    run = rewritten(small_run(overflowing=()), lambda drift: drift[drift["mode"].isin(modes)])
    assert drift_surface.draw(run).title == title
