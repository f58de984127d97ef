"""The report of fabricated runs: complete, unfinished, lacking files, and of awkward shapes. Warnings are errors."""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from precision_lab import report
from precision_lab.errors import InputError
from precision_lab.record.manifest import Coverage, Manifest, Storage, VariantEntry
from precision_lab.record.summary import Dtypes, Latency, Quantity, Summary
from precision_lab.report.figures import latency, surface
from precision_lab.report.view import View
from tests.spread import slow

DRIFT = ("drift_steps", "drift_blocks", "drift_surface")
NAMES = ("growth", "surface", *DRIFT, "latency", "images", "claims")
LONG = tuple(f"float16_with_the_scales_of_another_implementation_{i}" for i in range(7))


class Resources(HTMLParser):
    """Collects what a browser would fetch or run, and checks that elements nest."""

    VOID = frozenset({"meta", "img", "wbr", "br", "input"})

    def __init__(self, text: str):
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for key, value in attrs if key in ("src", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def edit(run: Path, **changes) -> None:
    replace(Manifest.read(run), **changes).write(run)


def edit_variants(run: Path, **changes) -> None:
    """Changes the entries of variants in the summary: name -> fields."""
    summary = Summary.read(run)
    variants = {name: replace(entry, **changes.get(name, {})) for name, entry in summary.variants.items()}
    replace(summary, variants=variants).write(run)


def text_of(page: Path) -> str:
    """The page without its data URIs and the places where a name may break, white space made single."""
    return " ".join(re.sub(r'src="data:[^"]*"|<wbr>', "", page.read_text(encoding="utf-8")).split())


def test_a_complete_run_gives_every_figure_and_one_self_contained_page(reported):
    page = reported / "report.html"
    files = {p.name for p in (reported / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")}
    for name in NAMES:
        with Image.open(reported / "figures" / f"{name}.png") as picture:
            assert picture.info["dpi"][0] == pytest.approx(150, abs=1)
            assert picture.width == pytest.approx(150 * 9.2, abs=1)

    parsed = Resources(page.read_text(encoding="utf-8"))
    assert not parsed.open
    pictures = len(list((reported / "images").iterdir()))
    assert len(parsed.sources) == len(NAMES) + pictures
    assert all(source.startswith("data:image/") for source in parsed.sources)
    assert sum(len(source) > 1000 for source in parsed.sources) >= len(NAMES)
    assert not parsed.tags & {"link", "iframe", "object"}
    assert "url(" not in text_of(page)
    assert "@import" not in text_of(page)


def test_the_page_says_what_the_summary_and_the_manifest_say(reported):
    text = text_of(reported / "report.html")
    assert "Synthetic weights: generated, untrained weights" in text
    for verdict in ("✓ supported", "✗ refuted", "? inconclusive"):
        assert verdict in text
    assert "first at transformer_blocks.37 (out.0), step 0, cond" in text
    assert "雪山 &lt;b&gt;&amp; mist&lt;/b&gt;" in text
    assert "ffn_scaling: ffn_scaling at 120 of 120" in text
    assert "Apple M4 Max" in text
    assert "&#39;seeds=[0, 1]&#39;" in text
    assert 'class="banner"' not in text
    assert text.count("Figure ") == len(NAMES)


@pytest.mark.parametrize("count", [8, 9])
def test_the_sites_of_many_variants_are_one_folded_row(small_run, figureless, count):
    run = small_run()
    coverage = {"first": Coverage(3, 40), "second": Coverage(5, 7)}
    names = [f"v{at}" for at in range(count)]
    variants = {**Manifest.read(run).variants, **dict.fromkeys(names, VariantEntry("bfloat16"))}
    (run / "summary.json").unlink()
    edit(run, variants=variants, sites=dict.fromkeys(names, coverage))
    text = text_of(report.write(run))
    assert text.count("matched sites") == 1
    assert all(f"v{at}: first at 3 of 40, second at 5 of 7<" in text for at in range(count))
    assert (f"<summary>of {count} variants</summary>" in text) == (count > 8)


def test_the_page_says_what_weights_take_and_which_variant_had_a_process_of_its_own(small_run, figureless):
    run = small_run()
    stored = {"transformer": Storage(1024, 576, 4.5), "text_encoder": Storage(64, 128, 16.0)}
    off, on = Manifest.read(run).environment.switches, {"MLX_ENABLE_TF32": "1"}
    scaled = VariantEntry("bfloat16", switches=on, linear_weights=stored)
    baseline = VariantEntry("bfloat16", switches=off)
    edit(run, variants={"reference": VariantEntry("float32"), "baseline": baseline, "ffn_scaling": scaled})
    text = text_of(report.write(run))
    assert text.count("4.50 bits a weight, 576 B") == text.count("bits a weight") == 1
    assert text.count("in a process of its own") == 1
    assert "ffn_scaling, in a process of its own: MLX_ENABLE_TF32 1" in text


@pytest.mark.parametrize(
    ("kind", "notes", "badge"),
    [
        ("trained", ["stream x4096"], "Trained weights, stream x4096: a checkpoint"),
        ("published", [], "Published weights: read"),
        ("synthetic", ["stream x2^-12", "at stream x2"], "Synthetic weights, stream x2^-12, at stream x2: generated"),
        ("other", ["stream x2"], "Weights, stream x2: the run does not say"),
    ],
)
def test_the_page_names_the_weights_with_the_notes_of_their_source(small_run, figureless, kind, notes, badge):
    run = small_run()
    edit(run, checkpoint=replace(Manifest.read(run).checkpoint, weights=kind, notes=notes))
    text = text_of(report.write(run))
    assert badge in text
    assert text.count("stream x") == 2 * len(notes), "on top, and where the checkpoint is described"


@pytest.mark.parametrize(
    "draws",
    [
        pytest.param((surface.draw, latency.draw), id="a heat map and lines"),
        pytest.param(None, id="all", marks=pytest.mark.slow),
    ],
)
def test_the_same_files_give_the_same_bytes_with_no_font_missing(reported, tmp_path, caplog, drawing_only, draws):
    """By default without the page: test_drawing_beside.py compares pages, with figures of other kinds."""
    again = shutil.copytree(reported, tmp_path / "again", ignore=shutil.ignore_patterns("figures", "report.html"))
    if draws:
        drawing_only(*draws)
    with caplog.at_level(logging.WARNING):
        report.write(again)
    assert not caplog.records  # matplotlib logs missing fonts
    names = {path.name for path in (again / "figures").iterdir()}
    assert names == {
        f"{name}.{kind}" for name in (("surface", "latency") if draws else NAMES) for kind in ("png", "svg")
    }
    for name in (*(f"figures/{name}" for name in names), *(() if draws else ("report.html",))):
        assert (again / name).read_bytes() == (reported / name).read_bytes()


def test_parts_of_an_unfinished_run_are_read_like_the_whole(small_run, figureless):
    run = small_run()
    whole = View.open(run)
    assert all(len(whole.run.tables[table]) for table in ("activations", "drift", "latency"))  # read before they move
    for table in ("activations", "drift", "latency"):
        frame = pd.read_parquet(run / f"{table}.parquet")
        (run / f"{table}.parquet").unlink()
        (run / table).mkdir()
        for variant, rows in frame.groupby("variant"):
            rows.to_parquet(run / table / f"part-{variant}.parquet")
        (run / table / "part-half.tmp").write_bytes(b"not written to the end")
    edit(run, status="running")
    parts = View.open(run)
    for table in ("activations", "drift", "latency"):
        expected, found = (
            frame.sort_values(list(frame.columns), ignore_index=True)
            for frame in (getattr(whole, table), getattr(parts, table))
        )
        pd.testing.assert_frame_equal(expected, found, check_dtype=False)
    assert '<p class="banner">This run is not finished' in text_of(report.write(run))


def test_a_run_that_has_only_begun_says_what_is_missing(small_run, unrendered):
    run = small_run()
    for path in run.iterdir():
        if path.name not in ("manifest.json", "config.yaml"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    edit(run, status="interrupted", variants={}, claims=(), sites={})
    text = text_of(report.write(run))
    assert "This run was interrupted" in text
    assert "This run has no variants yet." in text
    assert "states no claims" in text
    assert "recorded no activations" in text
    assert "compared nothing with a reference" in text
    assert "measured no latency" in text
    assert "made no pictures" in text
    assert not list((run / "figures").iterdir())


@pytest.mark.parametrize(
    ("missing", "sentence", "figures"),
    [
        ("activations.parquet", "recorded no activations", set(NAMES) - {"growth", "surface"}),
        slow(("drift.parquet", "compared nothing with a reference", set(NAMES) - set(DRIFT))),
        slow(("latency.parquet", "measured no latency", set(NAMES) - {"latency"})),
        ("images", "made no pictures", set(NAMES) - {"images"}),
    ],
)
def test_an_absent_table_costs_its_section_only(small_run, unrendered, missing, sentence, figures):
    run = small_run()
    gone = run / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert sentence in text_of(report.write(run))
    assert {p.stem for p in (run / "figures").iterdir()} == figures


NOTHING_FINITE = {"variants": ("reference", "float16"), "overflowing": ("reference", "float16"), "blocks": 2}
FEW = {"teacher": False, "side": 8}


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(
            {"variants": ("reference", *LONG), "overflowing": LONG[2:5], **FEW},
            id="many long names",
            marks=pytest.mark.slow,
        ),
        pytest.param({"blocks": 1, "steps": 1, "seeds": (3,), **FEW}, id="one of each", marks=pytest.mark.slow),
        pytest.param(
            {"steps": 1, "prompts": tuple("abcd"), **FEW}, id="one step and many pictures", marks=pytest.mark.slow
        ),
        pytest.param({**NOTHING_FINITE, **FEW}, id="nothing finite"),
        pytest.param({"variants": ("reference",), "overflowing": ()}, id="reference alone", marks=pytest.mark.slow),
    ],
)
def test_awkward_runs_are_drawn(small_run, shape):
    page = report.write(small_run(**shape))
    Resources(page.read_text(encoding="utf-8"))
    expected = set(NAMES) - (set(DRIFT) if shape.get("variants") == ("reference",) else set())
    assert {p.stem for p in page.with_name("figures").iterdir()} == expected
    if "prompts" in shape:
        assert "The first 6 of 8 pairs" in text_of(page)


def test_a_variant_that_raised_or_broke_its_expectation_says_so(small_run, figureless):
    run = small_run()
    broken = {"expect": "finite", "expectation_met": False}
    edit_variants(run, float16=broken, baseline={"error": "MemoryError: 82 GB"})
    text = text_of(report.write(run))
    assert "expected to be finite" in text
    assert "raised: MemoryError: 82 GB" in text


def test_numbers_may_be_null_with_a_reason(small_run, figureless):
    run = small_run()
    timing = Latency(1.5, 1.02, "inconclusive", None, "one round")
    untimed = {"dtype": Dtypes("float16", "float16"), "latency": None}
    edit_variants(run, float16=untimed, ffn_scaling={"latency": timing})
    summary = Summary.read(run)
    first, *others = summary.claims
    replace(summary, claims=[replace(first, effect=Quantity(None, "too few pairs"), ci95=None), *others]).write(run)
    text = text_of(report.write(run))
    assert "one round" in text
    assert "not timed" in text
    assert "too few pairs" in text


def test_what_is_no_run_folder_is_an_input_error(small_run, tmp_path):
    small_run()
    with pytest.raises(InputError, match=r"no such folder.*Did you mean run"):
        report.write(tmp_path / "runn")
    with pytest.raises(InputError, match=r"manifest\.json"):
        report.write(tmp_path)
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("file", ["manifest.json", "summary.json"])
def test_an_unknown_schema_or_broken_json_is_an_input_error(small_run, file):
    run = small_run()
    path = run / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 1}))
    with pytest.raises(InputError, match="schema_version 1, expected 2"):
        report.write(run)
    path.write_text("{")
    with pytest.raises(InputError, match="not strict JSON"):
        report.write(run)


def test_a_broken_table_is_an_input_error(small_run):
    run = small_run()
    pd.read_parquet(run / "drift.parquet").drop(columns="mode").to_parquet(run / "drift.parquet")
    with pytest.raises(InputError, match="has no column 'mode', expected a table drift"):
        report.write(run)
    (run / "drift.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match=r"drift\.parquet is not a table that can be read"):
        report.write(run)
