"""The atlas on small models of both architectures: what it records, the survey, and the figure side by side."""

import json

import numpy as np
import pytest

from experiments.atlas.modulation_errors import ModulationErrors
from experiments.atlas.operations import KINDS
from experiments.atlas.side_by_side import main as side_by_side
from experiments.atlas.survey import PROMPT, SENSITIVITY, Survey
from precision_lab.cli import main
from precision_lab.record.run import Run
from precision_lab.report.view import block_outputs
from tests.model.oracle import relative_l2
from tests.model.qwen_image_21.oracle import copy_of, ours, random_inputs, random_transformer
from tests.techniques.test_qwen_image_21 import SHAPE, rewritten, shipped
from tests.undrawn import undrawn

STEPS = 2
QUICK = (
    *(f"sampler.steps={STEPS}", "image.height=32", "image.width=64", "seeds=[0]", "prompts=[a red circle]"),
    *("workers=1", "pinned.cases=null"),
)


def run(folder, checkpoint, *overrides):
    with undrawn():
        assert main(["+exp=atlas", f"model.path={checkpoint}", f"out={folder}", *QUICK, *overrides]) == 0
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_checkpoint, small_checkpoint_21):
    top = tmp_path_factory.mktemp("atlas")
    return run(top / "left", small_checkpoint), run(top / "right", small_checkpoint_21, "model=micro_21")


@pytest.fixture(scope="module")
def surveys(runs):
    return [Survey.of(Run.open(folder)) for folder in runs]


def of_prompt(table, layout):
    """Rows of the prompt's pass through the blocks, which belongs to no step."""
    own = table[(table["component"] == layout.default) & table["step"].isna() & table["block"].notna()]
    return own[own["variant"] == "baseline"]


def test_the_prompt_of_21_is_recorded_once_with_no_step_and_that_of_1_in_every_step(runs):
    before, after = (Run.open(folder) for folder in runs)
    assert of_prompt(before.activations, before.layout).empty
    text = before.activations[(before.activations["variant"] == "baseline") & (before.activations["stream"] == "txt")]
    assert text["step"].nunique() == STEPS

    rows = of_prompt(after.activations, after.layout)
    assert set(rows["block"]) == set(range(after.layout.depth))
    assert not rows.duplicated(["prompt_id", "seed", "branch", "component", "site", "port"]).any()
    streams = block_outputs(after.activations, after.layout, "img")
    assert set(streams["step"]) == set(range(STEPS))


@pytest.mark.slow
def test_without_its_cache_the_prompt_has_the_same_values_in_every_step(tmp_path, runs, small_checkpoint_21):
    """Text is modulated with t = 0 and reads no token of the image, whatever the noise level and the latents."""
    quick = ("model=micro_21", "only=[baseline]", "drift.teacher.mode=off")
    uncached = run(tmp_path / "uncached", small_checkpoint_21, *quick, "sampler.prefix_cache=none", "dtype=float32")
    cached = run(tmp_path / "cached", small_checkpoint_21, *quick, "dtype=float32")
    keys = ["prompt_id", "seed", "site"]
    attended, once = (
        table[(table["variant"] == "baseline") & table["site"].str.endswith("attn.attend_prefix")]
        for table in (Run.open(folder).activations for folder in (uncached, cached))
    )
    assert once["step"].isna().all()
    assert set(attended["step"]) == set(range(STEPS))
    for value in ("amax", "rms", "mean"):
        by_step = attended.pivot(index=keys, columns="step", values=value)
        assert len(by_step) == len(once)
        assert (by_step.nunique(axis=1) == 1).all(), "bit for bit"
        np.testing.assert_allclose(by_step[0], once.set_index(keys)[value].reindex(by_step.index), rtol=1e-4, atol=1e-6)


def test_the_survey_has_every_kind_of_operation_and_shares_that_add_up(surveys):
    for survey in surveys:
        assert list(survey.headroom["kind"]) == [name for name, *_ in KINDS]
        assert (survey.headroom["least"] <= survey.headroom["most"]).all()
        assert survey.shares["share"].sum() == pytest.approx(1, abs=0.02)
        assert set(survey.shares["part"]) == {"entry", "attention", "feed-forward"}
        assert len(survey.shares) == 1 + 2 * survey.depth
        assert list(survey.growth) == list(range(STEPS))
        assert all(list(line.index) == list(range(survey.depth)) for line in survey.growth.values())
        assert all(len(survey.ratios[name]) == 1 for name in SENSITIVITY)
    before, after = surveys
    assert (list(before.other), list(after.other)) == (["text stream"], [PROMPT])
    passes = [survey.facts["prefix"]["passes"] for survey in surveys]
    assert passes == [0, 1]


def test_the_local_error_of_float16_is_an_eighth_of_that_of_bfloat16(surveys):
    """Three bits of significand, where nothing leaves the range."""
    for survey in surveys:
        first = survey.errors[survey.errors["step"] == 0].set_index("block")
        local = first[first["mode"] == "teacher"]
        coarse, fine = (local.loc[local["variant"] == name, "rel_l2"] for name in ("baseline", "float16"))
        assert len(coarse) == len(fine) == survey.depth
        assert 5 < (coarse / fine).median() < 12


@pytest.mark.slow
def test_side_by_side_writes_a_figure_and_strict_json(runs, surveys, tmp_path):
    assert side_by_side([*map(str, runs), "--to", str(tmp_path / "to")]) == 0
    assert {path.name for path in (tmp_path / "to").iterdir()} == {
        "numbers.json",
        "side_by_side.png",
        "side_by_side.svg",
    }

    def refuse(constant):
        raise AssertionError(constant)

    numbers = json.loads((tmp_path / "to" / "numbers.json").read_text(), parse_constant=refuse)
    assert list(numbers) == [survey.name for survey in surveys]
    for survey in surveys:
        found = numbers[survey.name]
        assert found["growth"]["peak"] == pytest.approx(max(line.max() for line in survey.growth.values()), rel=1e-5)


def test_folders_that_hold_no_run_of_the_atlas_are_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert side_by_side([str(tmp_path / "empty")] * 2 + ["--to", str(tmp_path / "to")]) == 2
    assert str(tmp_path / "empty") in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_error_of_the_shared_modulation_can_be_given_to_each_block(bits):
    """As one error it is what quantising gives; as errors of their own it has the same size in each block."""
    model = copy_of(random_transformer(0, SHAPE))
    inputs = random_inputs(np.random.default_rng(0), (5, 8), SHAPE, 2, tokens=40, lengths=(40, 17))
    plain = ours(model, inputs)
    quantised = rewritten(model, inputs, *shipped(f"affine{bits}_modulation").values())
    shared, own = (
        rewritten(model, inputs, ModulationErrors(own=own, bits=bits), cached=cached)
        for own, cached in ((False, True), (True, False))
    )
    assert relative_l2(shared, quantised) < 1e-5
    assert relative_l2(own, shared) > 0.1 * relative_l2(shared, plain)
    assert 0.3 < relative_l2(own, plain) / relative_l2(shared, plain) < 3
