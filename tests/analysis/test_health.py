"""Health of a run: planted faults are said, and sound runs say nothing."""

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.claims import Claim, judge
from precision_lab.analysis.gate.baseline import Choice
from precision_lab.analysis.gate.entry import learn
from precision_lab.analysis.gate.judge import Limits
from precision_lab.analysis.gate.judge import judge as gate
from precision_lab.analysis.gate.violation import UNSOUND, Violation, ordered
from precision_lab.analysis.health import AGAINST_REFERENCE, health
from precision_lab.analysis.measures import METRICS
from precision_lab.analysis.summary import exit_code, summarize
from precision_lab.errors import InputError
from precision_lab.record.run import Run
from precision_lab.record.summary import Summary
from precision_lab.record.tables import write_part
from tests.analysis.gate import fabricated_gate
from tests.fabricated import run_of

PROMPTS, SEEDS = 2, 2


def generations(change=None, what="picture"):
    """The table of a sound run of two variants; `change(rows)` spoils it."""
    rows = pd.DataFrame(
        [
            {
                "variant": variant,
                "prompt_id": prompt,
                "seed": seed,
                "what": what,
                "num_nonfinite": 0,
                "is_constant": False,
            }
            | {"least": 0.5, "greatest": 200.0, "digest": f"{variant} {prompt} {seed}"}
            for variant in ("reference", "baseline")
            for prompt in range(PROMPTS)
            for seed in range(SEEDS)
        ]
    )
    if change:
        change(rows)
    return rows


def found(change=None, what="picture", **about):
    run = run_of({"generations": generations(change, what)}, **about)
    return [(entry.kind, entry.variant, list(entry.cases)) for entry in health(run)]


def of(rows, variant, **case):
    chosen = rows["variant"] == variant
    for name, value in case.items():
        chosen &= rows[name] == value
    return chosen


def test_a_sound_run_and_one_without_the_table_say_nothing():
    assert found() == []
    assert health(run_of({})) == []


def test_a_reference_that_is_not_finite():
    def spoil(rows):
        rows.loc[of(rows, "reference", prompt_id=1), "num_nonfinite"] = 3
        rows.loc[of(rows, "reference", prompt_id=1), "digest"] = "the same zeros"

    assert found(spoil) == [("reference", "reference", [(1, 0), (1, 1)])], "its pictures are not said to be identical"


def test_values_of_a_variant_that_are_not_finite_are_a_result():
    def spoil(rows):
        rows.loc[of(rows, "baseline"), ["num_nonfinite", "digest"]] = [9, "zeros"]

    assert found(spoil) == []


@pytest.mark.parametrize("value", [0.0, 127.5])
def test_a_constant_outcome(value):
    def spoil(rows):
        rows.loc[of(rows, "baseline", seed=0), ["least", "greatest"]] = value
        rows.loc[of(rows, "baseline", seed=0), "is_constant"] = True
        rows.loc[of(rows, "baseline", seed=0), "digest"] = "the same"

    assert found(spoil) == [("constant", "baseline", [(0, 0), (1, 0)])]
    (entry,) = health(run_of({"generations": generations(spoil)}))
    assert f"every value is {value:g}" in entry.text


@pytest.mark.parametrize("what", ["picture", "result"])
def test_outcomes_that_do_not_depend_on_the_prompt(what):
    def spoil(rows):
        rows.loc[of(rows, "baseline", seed=1), "digest"] = "the same"

    assert found(spoil, what) == [("prompts", "baseline", [(0, 1), (1, 1)])]


@pytest.mark.parametrize(("what", "said"), [("picture", [("seeds", "reference", [(0, 0), (0, 1)])]), ("result", [])])
def test_pictures_that_do_not_depend_on_the_seed(what, said):
    """A language model draws no noise, so its results cannot depend on a seed."""

    def spoil(rows):
        rows.loc[of(rows, "reference", prompt_id=0), "digest"] = "the same"

    assert found(spoil, what) == said


@pytest.mark.parametrize("variant", ["reference", "baseline"])
def test_only_faults_of_the_reference_and_of_weights_decide_the_exit_code(tmp_path, variant):
    def spoil(rows):
        rows.loc[of(rows, variant), "is_constant"] = True

    run = run_of({"generations": generations(spoil)}, path=tmp_path)
    assert exit_code(run, summarize(run)) == (variant == "reference")
    sentence = "weights of vae: 1 of 9 tensors are not finite"
    run = run_of({"generations": generations()}, path=tmp_path, unsound_weights=[sentence])
    assert exit_code(run, summarize(run)) == 1
    read = Summary.read(tmp_path)
    assert read is not None
    assert [(entry.kind, entry.text) for entry in read.health] == [("weights", sentence)]


@pytest.mark.parametrize("metric", sorted(AGAINST_REFERENCE & set(METRICS)))
def test_nothing_is_judged_against_a_reference_that_is_not_finite(metric):
    rng = np.random.default_rng(0)
    drift = pd.DataFrame(
        [
            {"variant": variant, "reference": "reference", "mode": "free", "prompt_id": prompt, "seed": seed, "step": 1}
            | {"component": "pipeline", "site": "euler_step", "port": "out", "rel_l2": size * rng.uniform(1, 1.01)}
            for variant, size in (("baseline", 0.1), ("other", 0.5))
            for prompt in range(4)
            for seed in range(SEEDS)
        ]
    )
    claim = {"id": "C", "text": "t", "source": "s", "metric": metric, "relation": "larger", "subject": "other"}
    counted = {"relation": "nonzero"} if metric == "basin_left" else {"against": "baseline"}
    judged = Claim.from_dict({**claim, **counted})

    def spoil(rows):
        rows.loc[of(rows, "reference", prompt_id=0, seed=1), "num_nonfinite"] = 1

    tables = {"drift": drift, "generations": generations(spoil)}
    verdict = judge(judged, run_of(tables, ["baseline", "other"]))
    assert verdict.verdict == "inconclusive"
    assert verdict.reason.startswith("the reference is not finite in 1 of 4 generations (prompt 0 seed 1)")
    if metric == "drift":
        sound = judge(judged, run_of({**tables, "generations": generations()}, ["baseline", "other"]))
        assert sound.verdict == "supported"


def test_a_gate_fails_on_an_unsound_run_and_learns_nothing_from_it(tmp_path):
    sound = fabricated_gate.fabricate(tmp_path / "sound")
    choice = Choice(fabricated_gate.learned(), "device", True)
    assert not gate(sound, fabricated_gate.CONFIG, choice, Limits(), "b").violations
    spoilt = fabricated_gate.fabricate(tmp_path / "spoilt")
    constant = generations(lambda rows: rows.update({"is_constant": [True] * len(rows)}))
    write_part(spoilt.path, "generations", "all", constant)
    run = Run.open(spoilt.path)
    violations = gate(run, fabricated_gate.CONFIG, choice, Limits(), "b").violations
    assert [(v.kind, v.metric, v.variant) for v in violations] == [
        ("variants", UNSOUND, "baseline"),
        ("variants", UNSOUND, "reference"),
    ]
    with pytest.raises(InputError, match="constant picture"):
        learn(run, fabricated_gate.CONFIG)


def test_a_gate_names_where_a_value_arose_before_the_sites_that_received_it(tmp_path):
    choice = Choice(fabricated_gate.learned(), "device", True)
    table = fabricated_gate.activations()
    received = (table["variant"] == "baseline") & (table["site"] == "proj_out") & (table["seed"] == 1)
    table.loc[received, "num_nan"] = 5
    spoilt = fabricated_gate.fabricate(tmp_path / "spoilt", activations=table)
    place = {"component": "transformer", "site": "transformer_blocks.0.img_add1", "port": "out", "stream": "img"}
    row = {"variant": "baseline", "prompt_id": 0, "seed": 1, "branch": "cond", "step": 0, **place, "block": 0}
    row |= {"order": int(table.loc[received, "order"].min()), "num_nan": 0, "num_inf": 2, "dtype": "bfloat16"}
    write_part(spoilt.path, "nonfinite", "all", [{**row, "inputs_finite": True}])
    found = gate(Run.open(spoilt.path), fabricated_gate.CONFIG, choice, Limits(), "b").violations
    first = found[0]
    assert (first.kind, first.address, first.got, first.step) == ("nonfinite", "transformer_blocks.0.img_add1", "2", 0)
    assert first.case == "prompt 0, seed 1"
    assert found[1].site == "proj_out"


def test_a_gate_reads_an_unsound_run_first():
    late = Violation("ranges", "log2_amax", "1", "2", "baseline", "transformer", "x", order=0, step=0)
    unsound = Violation("variants", UNSOUND, "a sound run", "weights", "-")
    assert ordered([late, unsound]) == [unsound, late]
