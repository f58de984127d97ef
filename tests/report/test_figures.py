"""What figures are drawn from, and the rules they are drawn by."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from precision_lab.numerics.formats import REDUCED_FORMATS
from precision_lab.numerics.intervals import latency_verdict
from precision_lab.record.summary import Dtypes, Latency
from precision_lab.report import anomaly, headroom, view, wording
from precision_lab.report.figures import contributions, drift, images, labels, latency, style, surface
from precision_lab.report.view import View
from tests.report.fabricated_run import write_table

POSITIVE = st.floats(1e-30, 1e30)
NAMES = st.text("abcdefgh_0123456789-", min_size=1, max_size=80)


def test_failures_are_located_in_the_step_where_they_begin(small_run):
    run = View.open(small_run(blocks=60, steps=2, seeds=(0,)))
    rows = view.block_outputs(view.main_branch(run.activations, run.layout), run.layout, "img")
    bad = view.first_failure(rows)
    assert set(bad["variant"]) == {"float16"}
    assert set(bad["step"]) == {0}
    assert sorted(bad["block"].unique()) == list(range(37, 60))


def test_no_finite_statistic_sees_a_non_finite_tensor(small_run):
    folder = small_run()
    raw = pd.read_parquet(folder / "activations.parquet")
    raw.loc[raw["num_nan"] > 0, "amax"] = np.inf  # a probe may store either
    raw.to_parquet(folder / "activations.parquet")
    run = View.open(folder)
    assert run.activations["nonfinite"].sum() == (raw["num_nan"] > 0).sum() > 0
    assert np.isfinite(run.activations.loc[~run.activations["nonfinite"], "amax"]).all()
    assert run.activations.loc[run.activations["nonfinite"], "amax"].isna().all()


def test_typed_columns_with_missing_text_read_like_plain_ones(small_run):
    folder = small_run()
    plain = View.open(folder)
    for name in ("activations", "drift"):
        frame = pd.read_parquet(folder / f"{name}.parquet")
        types = {c: "string" for c in ("branch", "site", "port") if c in frame} | {"block": "Int64", "seed": "Int64"}
        frame.astype(types).to_parquet(folder / f"{name}.parquet")
    typed = View.open(folder)
    for name in ("activations", "drift"):
        pd.testing.assert_frame_equal(getattr(plain, name), getattr(typed, name), check_dtype=False)
    rows = view.results(typed.drift, typed.layout)
    assert len(view.main_branch(rows, typed.layout)) == len(view.results(plain.drift, plain.layout)) > 0


def test_rows_of_a_probe_without_a_range_are_left_out(small_run):
    folder = small_run()
    frame = pd.read_parquet(folder / "activations.parquet")
    other = frame.head(5).assign(amax=np.nan, num_nan=np.nan, num_inf=np.nan)
    pd.concat([frame, other]).to_parquet(folder / "activations.parquet")
    assert len(View.open(folder).activations) == len(frame)
    other.drop(columns=["amax", "num_nan", "num_inf"]).to_parquet(folder / "activations.parquet")
    assert View.open(folder).activations is None


def test_headroom_lists_the_worst_sites_first_and_agrees_with_amax(small_run):
    listed = headroom.worst(View.open(small_run()))
    assert [table.variant for table in listed] == ["reference", "baseline", "ffn_scaling", "float16"]
    for table in listed:
        amax = [site.amax for site in table.sites]
        assert amax == sorted(amax, reverse=True)
        assert len({site.address for site in table.sites}) == len(table.sites) <= headroom.MOST_SITES
        for site in table.sites:
            expected = [math.log2(fmt.max / site.amax) for fmt in REDUCED_FORMATS]
            assert site.bits == pytest.approx(expected, abs=1e-3)
    assert [table.nonfinite > 0 for table in listed] == [False, False, False, True]


def test_a_surface_is_lost_where_any_generation_is(small_run):
    run = View.open(small_run(overflowing=()))
    rows = view.block_outputs(run.activations, run.layout, "img")
    rows = rows[rows["variant"] == "baseline"].copy()
    lost = (rows["step"] == 1) & (rows["block"] == 4) & (rows["seed"] == 5)
    rows.loc[lost, "amax"] = np.nan
    cells = surface._surface(rows)
    assert cells.shape == (3, 6)
    assert np.isnan(cells.loc[1, 4])
    assert cells.isna().sum().sum() == 1
    assert cells.max().max() == pytest.approx(np.log10(rows["amax"].max()))


def test_a_variant_equal_to_the_reference_is_said_to_be_identical(small_run):
    folder = small_run(overflowing=())
    frame = pd.read_parquet(folder / "drift.parquet")
    frame.loc[frame["variant"] == "baseline", "rel_l2"] = 0.0
    frame.to_parquet(folder / "drift.parquet")
    drawing = drift.draw_steps(View.open(folder))
    labels = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert labels == ["baseline (identical to the reference)", "ffn_scaling", "float16"]


def test_pictures_with_alpha_are_drawn_over_squares_and_compared_by_what_is_seen(small_run):
    """Colours under transparent pixels make no difference."""
    folder = small_run(variants=("reference", "baseline"))
    assert images.ALPHA not in images.draw(View.open(folder)).caption
    rng = np.random.default_rng(3)
    for path in folder.glob("images/*.png"):
        pixels = np.asarray(Image.open(path).convert("RGBA")).copy()
        pixels[:8], pixels[8:, :, 3] = rng.integers(0, 256, pixels[:8].shape), 255
        pixels[:8, :, 3] = 0
        Image.fromarray(pixels).save(path)
    drawing = images.draw(View.open(folder))
    assert images.ALPHA in drawing.caption
    shown = [image.get_array() for axes in drawing.figure.axes for image in axes.images]
    assert all(array.shape[-1] == 3 for array in shown)
    differences = images._differences({("a", (0, 0)): pixels, ("b", (0, 0)): pixels[..., [2, 1, 0, 3]]}, "a")
    assert not differences["b", (0, 0)][:8].any()


def test_pictures_of_lost_latents_are_black_and_differences_of_equal_ones_nothing(small_run):
    folder = small_run(variants=("reference", "same", "float16"))
    for path in folder.glob("images/reference__*.png"):
        (path.with_name(path.name.replace("reference", "same"))).write_bytes(path.read_bytes())
    drawing = images.draw(View.open(folder))
    words = [text.get_text() for axes in drawing.figure.axes for text in axes.texts]
    assert words.count("not finite") == words.count("identical") == 2
    shown = [image.get_array() for axes in drawing.figure.axes for image in axes.images]
    assert len(shown) == 8
    assert sum(not array.any() for array in shown) == 4, "two lost pictures, and no difference from equal ones"


@given(st.integers(0, 255), st.integers(1, 64))
def test_a_gain_does_not_clip(level, side):
    difference = np.full((side, side, 3), level, np.uint8)
    gain = images._gain([difference])
    assert gain in images.GAINS
    assert gain == 1 or level * gain <= 255


@given(st.lists(st.tuples(st.floats(0.5, 2), st.floats(1e-4, 0.3)), min_size=1, max_size=6), st.floats(0, 0.1))
def test_every_slowdown_beyond_the_smallest_resolvable_is_called_slower(intervals, margin):
    entries = {f"v{i}": Latency(1.0, r, "", (r - h, r + h)) for i, (r, h) in enumerate(intervals)}
    smallest = latency.smallest_slowdown(
        entries | {"base": Latency(1.0, 1.0, "", (0, 9)), "untimed": None}, "base", margin
    )
    for _, half_width in intervals:
        ratio = smallest * (1 + 1e-9)
        assert latency_verdict(ratio - half_width, ratio + half_width, margin) == "slower"
    assert latency.smallest_slowdown({"base": Latency(1.0, 1.0, "", (1, 1))}, "base", margin) is None


@pytest.mark.parametrize("ci95", [None, (1.0, 1.4)])
def test_a_caption_of_latency_speaks_of_intervals_that_are_drawn(ci95):
    ratios = {"base": Latency(1.0, 1.0, "", (1, 1)), "other": Latency(1.2, 1.2, "inconclusive", ci95)}
    assert ("interval" in latency._caption(ratios, "base", 0.05, "reference")) == (ci95 is not None)


@given(st.integers(1, 42))
def test_every_variant_has_its_own_look_and_the_reference_is_grey(count):
    names = [f"v{i}" for i in range(count)]
    looks = style.looks(names, "v0")
    assert len({(look.colour, str(look.line)) for look in looks.values()}) == count
    assert looks["v0"].colour == style.REFERENCE
    assert style.looks(names[:2], "v0").items() <= looks.items()


@given(NAMES, st.integers(8, 40))
def test_shortened_names_keep_both_ends_and_wrapped_ones_their_width(name, length):
    short = labels.shorten(name, length)
    assert len(short) <= length
    assert (short == name) == (len(name) <= length)
    assert name.startswith(short.split("…")[0])
    assert name.endswith(short.split("…")[-1])
    assert all(len(line) <= length for line in labels.fold(name, length).split("\n"))
    assert labels.fold(name, 80).replace("\n", "") == name


@given(st.lists(POSITIVE, max_size=9), st.integers(0, 4))
def test_a_log_range_holds_all_positive_values_and_room_for_crosses(values, rows):
    low, high = style.log_range([values, [0.0, -1.0, math.nan, math.inf]], rows)
    assert 0 < low < high < math.inf
    assert all(low <= v <= high for v in values)
    assert style.log_range([values], rows + 1)[1] > high


@pytest.mark.parametrize("last", [0, 1, 2, 5, 9, 27, 49, 59, 60, 999])
def test_an_axis_of_blocks_is_labelled_from_the_first_to_the_last(last):
    axes = style.new_figure(2).subplots()
    style.index_axis(axes.xaxis, last)
    ticks = axes.xaxis.get_major_locator()()
    assert ticks[-1] == last
    assert len(ticks) == 1 or ticks[0] == 0
    assert all(t == int(t) for t in ticks)
    assert len(ticks) <= 9


@given(st.floats(-1e30, 1e30).filter(lambda x: abs(x) > 1e-30))
def test_a_number_is_readable_back_to_three_digits(value):
    text = wording.number(value).replace("\u2212", "-").replace(wording.NARROW_SPACE, "")
    mantissa, _, power = text.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")).partition("×10")
    assert float(f"{mantissa}e{power or 0}") == pytest.approx(value, rel=5.1e-3)


def test_words_for_what_is_missing_or_special():
    assert wording.number(None) == wording.fixed(math.nan, 2) == wording.interval(None) == wording.size(None) == "—"
    assert wording.number(0.0) == "0"
    assert wording.number(9.996e6) == "1.00×10⁷"
    assert wording.number(151552) == f"151{wording.NARROW_SPACE}552"
    assert wording.size(3 * 2**30) == "3.00 GiB"
    assert wording.size(0) == "0 B"
    settings = {"not set": None, "true": True, "blank": " ", "none": [], "a, 2": ["a", 2], "4.0": 4.0}
    assert [wording.setting(value) for value in settings.values()] == list(settings)
    assert wording.moment("2026-03-02T10:14:07+01:00") == "2026-03-02 09:14 UTC"
    assert wording.moment("yesterday") == "yesterday"
    assert wording.dtype(Dtypes("bfloat16", "float16")) == ("float16", "weights bfloat16")
    assert wording.dtype(Dtypes("float16", "float16")) == ("float16", "")


def test_contributions_are_drawn_only_where_they_were_measured(small_run):
    folder = small_run()
    assert contributions.draw(View.open(folder)) is None
    frame = pd.read_parquet(folder / "activations.parquet")
    rows = []
    for stream in ("img", "txt"):
        names = [f"{stream}_in", *(f"transformer_blocks.{i}.{stream}_add{k}" for i in range(3) for k in (1, 2))]
        place = {"variant": "reference", "prompt_id": 0, "seed": 0, "branch": "cond", "step": 0, "stream": stream}
        place |= {"component": "transformer", "port": "out", "final_share": 1 / 7}
        rows += [place | {"site": site, "block": int(site.split(".")[1]) if "." in site else None} for site in names]
    write_table(folder, "activations", pd.concat([frame, pd.DataFrame(rows).astype({"block": "Int64"})]))
    with style.theme():
        drawing = contributions.draw(View.open(folder))
    assert "in reference" in drawing.caption
    for axes in drawing.figure.axes:
        heights = [bar.get_height() for bars in axes.containers for bar in bars]
        assert heights == pytest.approx([1 / 7] * 6)
        assert axes.lines[0].get_ydata()[-1] == pytest.approx(1)


def test_the_frames_before_the_first_failure_end_with_it(small_run):
    folder = small_run(blocks=60, steps=2, seeds=(0,))
    frame = pd.read_parquet(folder / "activations.parquet")
    frame["order"] = frame.groupby(["variant", "prompt_id", "seed"]).cumcount()
    frame.sample(frac=1, random_state=0).to_parquet(folder / "activations.parquet")
    [found] = anomaly.first(View.open(folder))
    assert found.variant == "float16"
    assert len(found.frames) == anomaly.FRAMES + 1
    *before, last = found.frames
    assert last.amax is None
    assert all(f.amax is not None and f.bits is not None for f in before)
    bad = frame[(frame["variant"] == "float16") & ((frame["num_nan"] > 0) | (frame["num_inf"] > 0))]
    assert last.address.startswith(bad.sort_values("order")["site"].iloc[0])
