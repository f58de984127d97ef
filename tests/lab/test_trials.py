"""Trials: generations of variants that are chosen while the program runs."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.claims import Claim, judge
from precision_lab.analysis.trials import COLUMNS, outcomes
from precision_lab.cli.candidates import make
from precision_lab.errors import InputError
from precision_lab.lab import bench
from precision_lab.lab.measures import LatencySpec
from precision_lab.lab.run import run
from precision_lab.lab.spec import RunSpec, Variant
from precision_lab.lab.trials import FOLDER, Trial, Trials
from precision_lab.record import tables
from precision_lab.record.manifest import Manifest
from tests.subjects import settings, source

NARROW = {"_target_": "precision_lab.techniques.narrow.Narrow", "sites": ["transformer_blocks.*.img_mlp.net.2"]}
WIDE = {"_target_": "precision_lab.techniques.float32.Float32", "sites": ["norm_out"]}
OVERFLOWS = {
    "_target_": "precision_lab.techniques.ffn_scaling.FFNScaling",
    "sites": ["transformer_blocks.2.img_mlp"],
    "input_scale": 1.0,
    "output_scale": 1e9,
}


class Quiet:
    def __init__(self):
        self.done = 0.0

    def start(self, total):
        pass

    def advance(self, amount, label):
        self.done += amount

    def note(self, text):
        pass


@pytest.fixture
def spec(small_checkpoint, tmp_path):
    return RunSpec(
        experiment="trials",
        source=source(small_checkpoint),
        settings=settings(steps=3, guidance_scale=1.0, height=32, width=32),
        prompts=["a red circle", "a blue square"],
        seeds=[0],
        variants=[Variant("baseline", "bfloat16")],
        baseline="baseline",
        probes={},
        drift_sites=["pipeline:euler_step"],
        latency=LatencySpec(max_rounds=0),
        out=tmp_path / "out",
    )


@pytest.fixture
def generated(monkeypatch):
    """The names of the variants that are generated, in order."""
    made, original = [], bench.Bench.make

    def counted(self, variant, *rest):
        made.append(variant.name)
        return original(self, variant, *rest)

    monkeypatch.setattr(bench.Bench, "make", counted)
    return made


def test_a_trial_is_the_same_generation_as_that_of_a_run(spec, tmp_path):
    trial = Trial("bfloat16", {"wide": WIDE})
    with Trials(spec, Quiet(), make).opened() as trials:
        found = trials.evaluate([trial], spec.cases)
        drift, generations = found.drift, found.generations
        pictures = outcomes(found)
    whole = dataclasses.replace(spec, out=tmp_path / "run", variants=[trial.variant(make)], baseline=trial.key)
    run(whole, Quiet())
    for table, mine in (("drift", drift), ("generations", generations)):
        pd.testing.assert_frame_equal(
            mine.sort_values(["variant", "prompt_id"]).reset_index(drop=True), tables.read(whole.out, table)
        )
    assert np.isfinite(pictures["psnr_db"]).all() or (pictures["psnr_db"] == np.inf).any()
    assert list(pictures) == list(COLUMNS)
    assert Manifest.read(spec.out).status == "complete"
    assert not (spec.out / "reference").exists()


def test_nothing_is_generated_twice_and_an_interrupted_search_continues(spec, generated):
    first, second = Trial("bfloat16", {"narrow": NARROW}, "first"), Trial("float16")

    def interrupted():
        with Trials(spec, Quiet(), make).opened() as trials:
            trials.evaluate([first, Trial(first.dtype, first.nodes, "again")], spec.cases[:1])
            found.append(outcomes(trials.evaluate([first], spec.cases[:1])))
            raise KeyboardInterrupt

    found = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    [before] = found
    assert generated == ["reference", first.key]
    assert Manifest.read(spec.out).status == "interrupted"
    with Trials(dataclasses.replace(spec, resume=True), Quiet(), make).opened() as trials:
        again = outcomes(trials.evaluate([first], spec.cases[:1]))
        pd.testing.assert_frame_equal(before, again)
        trials.evaluate([first, second], spec.cases)
    assert generated == ["reference", first.key, "reference", first.key, second.key, second.key]
    with (
        pytest.raises(InputError, match="complete"),
        Trials(dataclasses.replace(spec, resume=True), Quiet(), make).opened(),
    ):
        pass


@pytest.mark.parametrize("stops", [True, False])
def test_a_trial_that_is_not_finite_ends_early_where_it_may_and_says_where_it_began(spec, stops):
    trial, progress = Trial("float16", {"overflows": OVERFLOWS}), Quiet()
    with Trials(spec, progress, make, stops=stops).opened() as trials:
        [row] = outcomes(trials.evaluate([trial], spec.cases[:1])).to_dict("records")
    assert not row["finite"]
    assert np.isnan(row["rel_l2"])
    assert row["steps"] == (1 if stops else 3)
    assert row["first_site"].startswith("transformer_blocks.2.img_")
    assert row["first_step"] == 0
    assert progress.done == 6  # the reference and the trial, three steps each
    assert (spec.out / FOLDER / "images" / f"{trial.key}__p0__s0.png").exists() != stops


def test_a_claim_about_a_trial_is_judged_as_in_a_run(spec):
    trial = Trial("float16", {"overflows": OVERFLOWS})
    claim = {"id": "drifts", "text": "t", "source": "s", "metric": "drift", "relation": "smaller", "bound": 0.5}
    with Trials(spec, Quiet(), make).opened() as trials:
        found = trials.evaluate([Trial("bfloat16"), trial], spec.cases)
        verdicts = [judge(Claim.from_dict({**claim, "subject": t.key}), found) for t in (Trial("bfloat16"), trial)]
        errors = outcomes(found)["rel_l2"].iloc[:2]
    assert verdicts[0].effect == pytest.approx(np.exp(np.log(errors).mean()))
    assert verdicts[1].reason == "undefined or non-finite values"


def test_a_trial_that_raises_is_recorded_and_the_others_go_on(spec):
    raises = Trial("bfloat16", {"broken": {"_target_": "tests.lab.test_run.Broken"}})
    with Trials(spec, Quiet(), make).opened() as trials:
        rows = outcomes(trials.evaluate([raises, Trial("bfloat16")], spec.cases[:1]))
    assert "RuntimeError" in rows["error"].iloc[0]
    assert rows["error"].isna().tolist() == [False, True]


def test_the_key_is_that_of_dtype_and_techniques_in_order():
    both = {"a": NARROW, "b": WIDE}
    trial = Trial("bfloat16", both, "one")
    assert trial.key == Trial("bfloat16", {k: dict(reversed(v.items())) for k, v in both.items()}, "two").key
    others = [Trial("float16", both), Trial("bfloat16", dict(reversed(both.items()))), Trial("bfloat16", {"a": NARROW})]
    assert len({trial.key, *(other.key for other in others)}) == 4


def test_a_spec_that_cannot_be_run_leaves_nothing(spec):
    broken = dataclasses.replace(spec, drift_sites=["nowhere"])
    with pytest.raises(InputError, match="nowhere"), Trials(broken, Quiet(), make).opened():
        pass
    assert not spec.out.exists()
