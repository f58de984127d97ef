"""Variants with settings of their own: the same numbers as in a run with these settings, and a distance to the base."""

import dataclasses

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.summary import summarize
from precision_lab.errors import InputError
from precision_lab.instrument.arrays import to_numpy
from precision_lab.lab.measures import LatencySpec, TeacherSpec
from precision_lab.lab.plan import plan
from precision_lab.lab.run import run
from precision_lab.lab.spec import RunSpec, Variant
from precision_lab.lab.subject import Case, generation
from precision_lab.numerics.metrics import compare
from precision_lab.record.manifest import Manifest
from precision_lab.record.tables import read
from tests.lab.test_run import Quiet
from tests.subjects import settings, source

BASE = settings(steps=3, guidance_scale=2.0, height=32, width=48)
STATIC = {"steps": 2, "schedule": {"use_dynamic_shifting": False, "shift": 3.0, "shift_terminal": None}}
LEVELS = {"sigmas": [1.0, 0.7, 0.2], "guidance_scale": 1.0}
PROMPTS, SEEDS = ["two red circles"], [3]
KEYS = ["prompt_id", "seed", "mode", "branch", "step", "component", "site", "port"]


@pytest.fixture(scope="module")
def sources(small_checkpoint):
    return source(small_checkpoint)


@pytest.fixture
def spec(sources, tmp_path):
    def made(variants, settings=BASE, name="run", **changed):
        return RunSpec(
            experiment="own",
            source=sources,
            settings=settings,
            prompts=PROMPTS,
            seeds=SEEDS,
            variants=variants,
            baseline=variants[0].name,
            probes={},
            drift_sites=["transformer_blocks.*", "pipeline:euler_step"],
            teacher=TeacherSpec(["transformer_blocks.*"], "full"),
            latency=LatencySpec(min_rounds=0, max_rounds=0),
            out=tmp_path / name,
            **changed,
        )

    return made


def latents(source, own):
    """By seed, the fp32 latents after the last step."""
    subject, found = source.load(mx.float32), {}
    for seed in SEEDS:
        *_, (_, last) = generation(subject, Case(0, PROMPTS[0], seed, own), own["steps"])
        found[seed] = to_numpy(last.result)
    return found


def test_the_numbers_are_those_of_a_run_with_these_settings(spec, sources):
    variants = [
        Variant("plain", "bfloat16"),
        Variant("static", "bfloat16", settings=STATIC),
        Variant("half", "float16", settings=STATIC),
        Variant("levels", "bfloat16", settings=LEVELS),
        Variant("same", "bfloat16", settings={"steps": 3}),
    ]
    own = spec(variants)
    run(own, Quiet())
    drift = read(own.out, "drift")
    followed = drift[drift["mode"] != "base"]
    expected = {"static": "reference+static", "half": "reference+static", "levels": "reference+levels"}
    for name, rows in followed.groupby("variant"):
        assert set(rows["reference"]) == {expected.get(name, "reference")}
    assert [v.name for v in own.references] == ["reference", "reference+static", "reference+levels"]

    for name, changed in (("static", STATIC), ("levels", LEVELS), ("plain", {})):
        alone = spec([Variant(name, "bfloat16")], {**BASE, **changed}, f"run of {name}")
        run(alone, Quiet())
        sides = [frame[frame["variant"] == name].set_index(KEYS) for frame in (followed, read(alone.out, "drift"))]
        assert len(sides[0]) == len(sides[1]) > 30
        values = ["rel_l2", "cosine", "max_abs_err"]
        pd.testing.assert_frame_equal(sides[0][values], sides[1].loc[sides[0].index, values], check_exact=True)

    base = drift[drift["mode"] == "base"]
    assert set(base["variant"]) == {"static", "half", "levels", "reference+static", "reference+levels"}
    assert set(base["reference"]) == {"reference"}
    assert len(base) == 5 * len(SEEDS), "the last result alone"
    exact = latents(sources, BASE)
    for name, changed in (("reference+static", STATIC), ("reference+levels", LEVELS)):
        for seed, other in latents(sources, {**BASE, **changed}).items():
            (row,) = base[(base["variant"] == name) & (base["seed"] == seed)].to_dict("records")
            assert row["rel_l2"] == compare(other, exact[seed]).values["rel_l2"] > 0.01
            assert row["step"] == len(changed.get("sigmas", "ab")) - 1

    manifest = Manifest.read(own.out)
    assert manifest.variants["static"].settings == STATIC
    assert manifest.variants["half"].reference == "reference+static"
    assert manifest.variants["plain"].reference == manifest.variants["same"].reference == "reference"
    summary = summarize(own.out)
    assert {"base_rel_l2", "base_psnr_db", "base_ssim"} == set(summary.variants["static"].metrics)
    assert summary.variants["plain"].metrics == {}
    narrow, schedule = summary.variants["static"], summary.variants["reference+static"]
    assert 0 < narrow.latent_rel_l2.value < schedule.metrics["base_rel_l2"].value
    assert narrow.psnr_db.value > narrow.metrics["base_psnr_db"].value


@pytest.mark.slow
def test_a_lost_reference_is_made_again(spec, monkeypatch):
    """After an interruption, only what is missing is made, with the same numbers."""
    variants = [Variant("plain", "bfloat16"), Variant("static", "bfloat16", settings=STATIC)]
    whole = spec(variants, name="whole")
    run(whole, Quiet())
    cut = spec(variants, name="cut", resolved="x")
    made = []

    class Cut(Quiet):
        def advance(self, amount, label):
            super().advance(amount, label)
            made.append(label)
            if label.startswith("static,"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cut, Cut())
    for path in (cut.out / "reference").iterdir():
        path.unlink()
    run(dataclasses.replace(cut, resume=True), Quiet())
    frames = [read(s.out, "drift") for s in (whole, cut)]
    pd.testing.assert_frame_equal(*frames, check_exact=True)


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"height": 64}, r"variants.a.settings: height cannot differ.*Available: batched_guidance, guidance_scale"),
        ({"stpes": 4}, r"variants.a.settings: stpes .*Did you mean steps"),
        ({"steps": 0}, r"variants.a.settings: sampler.steps is 0"),
        ({"sigmas": [1, 0.5]}, r"variants.a.settings: sampler.sigmas has 2 noise levels and sampler.steps is 3"),
        ({"schedule": {"shfit": 1}}, r"variants.a.settings: Unknown setting 'sampler.schedule.shfit'"),
        (
            {"schedule": {"time_shift_type": "linear", "base_shift": -3.0, "shift_terminal": None}},
            r"variants.a.settings: the schedule of 3",
        ),
    ],
)
def test_settings_that_cannot_be(spec, own, named):
    with pytest.raises(InputError, match=named):
        plan(spec([Variant("plain", "bfloat16"), Variant("a", "bfloat16", settings=own)]))


def test_a_source_that_lets_nothing_differ(spec, sources):
    class Fixed:
        layout, checkpoint, steps, load = sources.layout, sources.checkpoint, sources.steps, sources.load

    with pytest.raises(InputError, match="allows no setting to differ"):
        dataclasses.replace(spec([Variant("a", "bfloat16", settings=STATIC)]), source=Fixed())
    with pytest.raises(InputError, match=r"'reference\+a' is taken"):
        spec([Variant("reference+a", "bfloat16")])


def test_remarks_are_in_the_manifest_and_on_the_terminal(spec):
    quiet = spec([Variant("plain", "bfloat16")])
    assert plan(quiet).notes == []
    off = {**BASE, "guidance_scale": 1.0, "negative_prompt": "blurred"}
    one = spec([Variant("plain", "bfloat16"), Variant("on", "bfloat16", settings={"guidance_scale": 2.0})], off)
    said = ["Guidance is off, because sampler.guidance_scale is 1, not above 1"]
    said.append("sampler.negative_prompt 'blurred' is ignored without guidance")
    progress = Quiet()
    run(dataclasses.replace(one, teacher=TeacherSpec()), progress)
    assert [note for note in progress.notes if note in said] == said
    assert Manifest.read(one.out).notes == said
    other = plan(spec([Variant("a", "bfloat16", settings={"guidance_scale": 1.0})])).notes
    assert other == [f"a: {said[0]}"]
    np.testing.assert_equal(len(plan(dataclasses.replace(quiet, prompts=["red " * 700])).notes), 1)
