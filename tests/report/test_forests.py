"""Forest plots, and the choice of variants for figures that would be crowded."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from precision_lab.numerics.intervals import geometric_mean_ratio
from precision_lab.record.manifest import Manifest
from precision_lab.record.run import Run, Tables
from precision_lab.record.summary import ClaimEntry, Quantity, Summary
from precision_lab.report.figures import claim_forest, drift, forest, growth, style, variant_forest
from precision_lab.report.figures.selection import drift_profiles, farthest_first
from precision_lab.report.view import MOST_VARIANTS, View, results
from precision_lab.report.wording import interval, number
from tests.report.fabricated_run import claim_of

UNKNOWN = {"ci95": None, "noise_floor": Quantity(None)}
MANY = ("reference", "baseline", "float16", *(f"v{i}" for i in range(9)))


def claim(**changes):
    base = {"id": "C", "text": "the latents drift less", "source": "s", "verdict": "supported", "metric": "drift"}
    base |= {"relation": "smaller", "subject": "a", "against": "baseline", "bound": None}
    return ClaimEntry(**base | {"effect": Quantity(0.5), "ci95": (0.4, 0.6), "noise_floor": Quantity(0.1)} | changes)


@pytest.fixture
def judged(small_run):
    """A run with some judged claims; stated: by their id, what the manifest states beyond the entries."""

    def make(*claims, stated=None, **changes):
        folder = small_run(steps=2, **changes)
        replace(Summary.read(folder), claims=claims).write(folder)
        statements = [claim_of(entry, **(stated or {}).get(entry.id, {})) for entry in claims]
        replace(Manifest.read(folder), claims=statements).write(folder)
        return View.open(folder)

    return make


def texts(drawing):
    return [text.get_text() for axes in drawing.figure.axes for text in axes.texts]


def titles(drawing):
    return [axes.get_title() for axes in drawing.figure.axes]


def test_a_claim_is_a_row_with_what_was_claimed_and_found(judged):
    claims = [
        claim(id="less"),
        claim(id="count", metric="nonfinite", relation="zero", against=None, effect=Quantity(0.0), **UNKNOWN),
        claim(id="bound", relation="larger", against=None, bound=0.3, verdict="supported", noise_floor=Quantity(None)),
        claim(id="open", verdict="inconclusive", effect=Quantity(None, "undefined or non-finite values"), ci95=None),
        claim(id="few", verdict="inconclusive", ci95=None, verdict_reason="too few prompts: 2, expected at least 3"),
    ]
    drawing = claim_forest.draw(judged(*claims))
    said = [text.replace("\n", " ") for text in texts(drawing)]
    expected = ("< baseline", "0.500 [0.400, 0.600]", "none", "0", "> 0.30", "undefined or non-finite values")
    expected += ("0.500 (too few prompts)",)
    assert all(words in said for words in expected), said
    assert titles(drawing) == ["Drift of the latents", "Values that are not finite"]
    assert sum(len(axes.get_yticklabels()) for axes in drawing.figure.axes) == len(claims)


def test_a_quantity_is_shown_beside_its_bound_and_drawn_as_their_ratio(judged):
    drift = {"against": None, "bound": 0.1, "relation": "larger", "verdict": "refuted", "noise_floor": Quantity(None)}
    claims = [
        claim(id="drift", effect=Quantity(0.0754), ci95=(0.07, 0.08), **drift),
        claim(id="psnr", metric="psnr_db", effect=Quantity(26.0), ci95=(24.0, 28.0), **{**drift, "bound": 30.0}),
        claim(id="more", metric="psnr_db", effect=Quantity(6.02), ci95=(5.0, 7.0), noise_floor=Quantity(2.0)),
    ]
    drawing = claim_forest.draw(judged(*claims, stated={"drift": {"margin": 0.05}, "psnr": {"margin": 1.0}}))
    said = [text.replace("\n", " ") for text in texts(drawing)]
    for words in ("> 0.10", "0.0754 [0.0700, 0.0800]", "> 30 dB", "26.0 dB [24.0, 28.0]", "6.02 dB [5.00, 7.00]"):
        assert words in said, said
    assert titles(drawing) == ["Drift of the latents", "PSNR of the picture"]
    points = [line.get_xdata()[0] for axes in drawing.figure.axes for line in axes.lines if line.get_marker() in "oD"]
    assert points == pytest.approx([0.754, 10 ** (-4 / 20), 10 ** (6.02 / 20)])
    bands = [patch.get_x() + patch.get_width() for axes in drawing.figure.axes for patch in axes.patches]
    assert bands == pytest.approx([1.05, 10 ** (1 / 20), 10 ** (2 / 20)])


def test_claims_on_other_sites_are_a_group_of_their_own_and_counts_stand_last(judged):
    claims = [claim(id="n", metric="nonfinite", relation="nonzero", against=None), claim(id="p"), claim(id="l")]
    stated = {"p": {"sites": "pipeline:to_pixels"}}
    drawing = claim_forest.draw(judged(*claims, stated=stated))
    assert titles(drawing) == ["Drift of the picture", "Drift of the latents", "Values that are not finite"]


def test_the_margin_of_a_claim_is_shaded_where_it_is_above_the_noise_floor(judged):
    stated = {"C": {"margin": 0.25}}
    axes = claim_forest.draw(judged(claim(), stated=stated)).figure.axes[0]
    (band,) = axes.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((1 / 1.25, 1.25))


def test_without_judged_claims_there_is_no_figure(judged, small_run):
    assert claim_forest.draw(judged()) is None
    not_run = claim(effect=Quantity(None, "variant a was not run"), ci95=None)
    assert claim_forest.draw(judged(not_run, name="not_run")) is None
    unfinished = small_run("unfinished")
    (unfinished / "summary.json").unlink()
    assert claim_forest.draw(View.open(unfinished)) is None


@example("a" * 20 + " ", 20)
@given(st.text("abcd ", max_size=200), st.integers(20, 60))
def test_wrapped_text_is_whole_and_within_its_width(text, width):
    wrapped = forest.wrap(text, width, lines=20)
    assert wrapped.split() == text.split() or any(len(word) > width for word in text.split())
    assert all(len(line) <= width for line in wrapped.split("\n"))


@given(st.lists(st.floats(1e-9, 1e9), max_size=6))
def test_an_axis_of_ratios_is_symmetrical_and_bounded(values):
    low, high = forest.ratio_limits([*values, math.nan])
    assert low * high == pytest.approx(1)
    assert 1.2 < high <= forest.REACH * 1.0001
    if all(1 / 4 < value < 4 for value in values):
        assert all(low < value < high for value in values)


def test_many_variants_are_listed_with_their_ratio_to_the_baseline(judged):
    run = judged(claim(), claim(id="q", noise_floor=Quantity(0.2)), variants=MANY, prompts=("a", "b", "c"), seeds=(0,))
    drawing = variant_forest.draw(run)
    left = drawing.figure.axes[::2]
    names = [label.get_text() for axes in left for label in axes.get_yticklabels()]
    assert sorted(names) == sorted(set(MANY) - {"reference"})
    assert "noise floor" in drawing.caption
    last = results(run.drift, run.layout)
    last = last[(last["step"] == 1) & (last["mode"] == "free")].sort_values(["prompt_id", "seed"])
    errors = {name: last.loc[last["variant"] == name, "rel_l2"].to_numpy() for name in ("v3", "baseline")}
    assert [len(found) for found in errors.values()] == [3, 3]
    ratio = geometric_mean_ratio(errors["v3"], errors["baseline"], range(3))
    assert f"{number(ratio.estimate)} {interval((ratio.lo, ratio.hi))}" in texts(drawing)
    assert "not finite in 3 of 3" in texts(drawing)
    bands = [patch for axes in drawing.figure.axes[1::2] for patch in axes.patches]
    assert bands[0].get_x() == pytest.approx(1 / 1.2)


@pytest.mark.parametrize("prompts", [("a",), ("a", "b", "c")])
def test_forests_speak_of_intervals_where_they_are_drawn(judged, prompts):
    judgement = claim() if len(prompts) > 1 else claim(verdict="inconclusive", ci95=None, verdict_reason="too few")
    run = judged(judgement, variants=MANY, prompts=prompts, seeds=(0,))
    for drawing in (variant_forest.draw(run), claim_forest.draw(run)):
        legend = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
        said = " ".join((drawing.caption, *texts(drawing), *legend))
        assert ("interval" in said) == (len(prompts) > 1)


def test_few_variants_have_no_forest_and_all_are_shown(judged):
    run = judged(claim())
    assert variant_forest.draw(run) is None
    assert run.shown == run.by_colour == run.variants
    assert run.selection == run.left_out == ""


def test_crowded_figures_show_some_and_name_the_others(judged):
    run = judged(variants=MANY)
    assert len(run.shown) == MOST_VARIANTS
    assert {"reference", "baseline", "float16"} <= set(run.shown)
    others = set(run.variants) - set(run.shown)
    for drawing in (growth.draw(run), drift.draw_steps(run), drift.draw_blocks(run)):
        labels = {text.get_text().split(" ")[0] for text in drawing.figure.legends[0].get_texts()}
        assert labels <= set(run.shown)
        assert all(name in drawing.caption.partition("Left out:")[2] for name in others)
        assert f"The figure shows {len(labels)} of" in drawing.caption
        assert ("the reference, the baseline" in drawing.caption) == ("reference" in labels)
    looks = style.looks(run.by_colour, run.reference)
    assert len({looks[name].colour for name in run.shown}) == len(run.shown)
    assert {looks[name].line for name in run.shown} == {"-"}


def test_without_drift_the_first_variants_are_shown(judged):
    run = judged(variants=MANY)
    bare = View(Run(run.run.path, run.manifest, Tables.of({"activations": run.run.activations})))
    assert bare.shown == run.variants[:MOST_VARIANTS]


def test_farthest_first_by_hand():
    profiles = pd.DataFrame({0: [0.0, 0.1, 5.0, 2.0, 4.9]}, index=list("abcde"))
    assert farthest_first(profiles, "a", 3) == ["a", "c", "d"]
    assert sorted(farthest_first(profiles, "b", 9)) == list("abcde")


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 5))
def test_farthest_first_leaves_nothing_farther_than_what_it_chose(seed, rows, count):
    values = np.random.default_rng(seed).normal(size=(rows, 3))
    profiles = pd.DataFrame(values, index=[str(i) for i in range(rows)])
    chosen = [int(name) for name in farthest_first(profiles, "0", count)]
    assert len(set(chosen)) == len(chosen) == min(rows, count)
    apart = np.abs(values[:, None] - values[None]).mean(axis=2)
    covered = apart[:, chosen].min(axis=1).max()
    closest = min((apart[a, b] for a in chosen for b in chosen if a < b), default=np.inf)
    assert covered <= closest + 1e-12


def test_profiles_put_the_lost_on_top_and_the_identical_below():
    latents = [("a", 0.1), ("b", 0.01), ("lost", math.nan), ("same", 0.0)]
    rows = pd.DataFrame(
        [{"variant": name, "step": step, "rel_l2": value} for name, value in latents for step in (0, 1)]
    )
    profiles = drift_profiles(rows)
    assert profiles[1].to_dict() == pytest.approx({"a": -1, "b": -2, "lost": 0, "same": -3})
