"""`search`: recipes with their evidence, the same whatever the workers and interruptions, and mistakes of users."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from precision_lab.cli import main, searched, searching
from precision_lab.record.search import Search
from precision_lab.record.search_tables import OF_A_SEARCH
from tests.spread import thinned
from tests.undrawn import undrawn as without_a_page

CASE = ("image.height=32", "image.width=32", "sampler.steps=2", "sampler.guidance_scale=1.0", "seeds=[0]")
CASES = ("prompts=[a,b]", "learning.prompts=[]", "trials.cases=1", "holdout.seeds=[1]")
QUICK = (
    "by=[operation]",
    "scan.steps=[1]",
    "confirm=0",
    "trials.sizes=1",
    "optuna.baseline=false",
    "trials.evaluations=4",
)
BUDGET = "budget.bits=6"


@pytest.fixture(scope="module")
def search(small_checkpoint):
    def call(out, *overrides):
        return main(["search", f"model.path={small_checkpoint}", *CASE, *CASES, *QUICK, f"out={out}", *overrides])

    return call


@pytest.fixture(scope="module")
def finished(search, tmp_path_factory):
    out = tmp_path_factory.mktemp("search") / "out"
    assert search(out, BUDGET, "include=[affine8_modulation]") == 0
    return out


def tables(folder):
    return {name: pd.read_parquet(folder / f"{name}.parquet") for name in OF_A_SEARCH}


def recipe(folder, name="search_6bits"):
    return yaml.safe_load((folder / "technique" / f"{name}.yaml").read_text())


def test_what_it_leaves(finished):
    found = Search.open(finished)
    assert found.manifest.status == "complete"
    for name, frame in tables(finished).items():
        assert list(frame.columns) == [column.name for column in OF_A_SEARCH[name]]
    recipes = found.recipes
    assert set(recipes["strategy"]) == {"plain", "uniform", "included", "knapsack", "greedy", "exchange"}
    assert set(recipes[["held_out", "prompt_id", "seed"]].drop_duplicates().itertuples(index=False, name=None)) == {
        (False, 0, 0),
        (True, 1, 1),
    }
    within = recipes[recipes["budget"] == "6bits"]
    assert (within["bytes"] <= found.findings.limits["6bits"]).all()
    assert (recipes.loc[recipes["strategy"] == "plain", "rel_l2"] == 0).all()
    assert recipes.groupby("recipe")["rel_l2"].max().drop("plain").between(1e-5, 1).all()
    for figure in ("front", "trials", "additivity"):
        assert (finished / "figures" / f"{figure}.png").stat().st_size > 5000
    page = (finished / "report.html").read_text().replace("<wbr>", "")  # where names may break
    assert "search_6bits" in page
    assert "affine8_modulation" in page


def test_the_bytes_of_a_recipe_are_those_that_its_choice_predicts(finished):
    found = Search.open(finished)
    scan = pd.read_parquet(finished / "sensitivity" / "sensitivity.parquet")
    saved = scan.drop_duplicates(["group", "candidate"]).set_index(["group", "candidate"])["bytes_saved"]
    sizes = found.recipes.drop_duplicates("recipe").set_index("recipe")["bytes"]
    for name, choice in found.choices.groupby("recipe"):
        own = choice[choice["candidate"] != "as_stored"]
        less = sum(saved[group, candidate] for group, candidate in zip(own["group"], own["candidate"], strict=True))
        assert sizes[name] == sizes["plain"] - less


@without_a_page()
def test_the_yaml_alone_reproduces_the_recipe(finished, small_checkpoint, tmp_path):
    text = (finished / "technique" / "search_6bits.yaml").read_text()
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert Search.open(finished).manifest.checkpoint.fingerprint in head
    for words in ("held out", "noise floor", "bits a weight", "predicted", "command: python -m precision_lab search"):
        assert words in head
    out = tmp_path / "run"
    cases = ("prompts=[a,b]", "seeds=[0,1]", "probe=[]", "latency.min_rounds=0", "latency.max_rounds=0")
    recipes = ("--config-dir", str(finished), "technique=[search_6bits]")
    assert (
        main(["run", f"model.path={small_checkpoint}", *CASE[:-1], *cases, "dtype=float32", f"out={out}", *recipes])
        == 0
    )
    drift = pd.read_parquet(out / "drift.parquet").query("variant == 'custom' and site == 'euler_step'")
    last = drift[drift["step"] == drift["step"].max()].set_index(["prompt_id", "seed"])["rel_l2"]
    rows = tables(finished)["search_recipes"].query("recipe == 'search_6bits'").set_index(["prompt_id", "seed"])
    assert len(rows) == 2
    for case, row in rows.iterrows():
        assert last[case] == row["rel_l2"]


@pytest.fixture(scope="module")
def again(search, finished):
    """A search with the sensitivities of another one, whose result is the same."""

    def call(out, *overrides):
        given = (f"sensitivity={finished / 'sensitivity'}", "include=[affine8_modulation]")
        return search(out, *given, *overrides)

    return call


@pytest.fixture
def undrawn(monkeypatch):
    """No page of a search: its figures take longer than the trials of these tests."""
    monkeypatch.setattr(searched, "draw_search", lambda folder, console: None)


def same(one, other):
    for name, frame in tables(one).items():
        pd.testing.assert_frame_equal(frame, tables(other)[name])
    assert recipe(one) == recipe(other)


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_workers(again, finished, tmp_path, undrawn):
    out = tmp_path / "out"
    assert again(out, BUDGET, "workers=2") == 0
    same(out, finished)


@pytest.mark.slow
def test_a_killed_search_ends_resumed_in_the_same_result(again, finished, tmp_path, monkeypatch, undrawn):
    out, original, count = tmp_path / "out", searching.Search._outcomes, 0

    def killed(self, pairs, cases):
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        return original(self, pairs, cases)

    with monkeypatch.context() as patch:
        patch.setattr(searching.Search, "_outcomes", killed)
        assert again(out, BUDGET) == 130
    assert json.loads((out / "manifest.json").read_text())["status"] == "interrupted"
    assert not (out / "search.json").exists()
    assert again(out, BUDGET, "resume=true") == 0
    same(out, finished)


@pytest.mark.slow
def test_a_search_killed_in_its_scan_continues(search, finished, tmp_path, monkeypatch, undrawn):
    from precision_lab.lab import scan

    out = tmp_path / "out"

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scan.Scan, "finish", killed)
        assert search(out, BUDGET, "include=[affine8_modulation]") == 130
    assert search(out, BUDGET, "include=[affine8_modulation]", "resume=true") == 0
    same(out, finished)


@pytest.mark.slow
def test_a_budget_of_drift_has_the_smallest_recipe_that_is_found_within_it(again, tmp_path, undrawn):
    out = tmp_path / "out"
    assert again(out, "budget.drift=0.02") == 0
    found = Search.open(out)
    [name] = found.findings.found.values()
    own = found.recipes[(found.recipes["recipe"] == name) & ~found.recipes["held_out"]]
    assert (own["rel_l2"] <= 0.02).all()
    plain = found.recipes.query("recipe == 'plain'")["bytes"].iloc[0]
    assert own["bytes"].iloc[0] < 0.8 * plain


@pytest.mark.slow
def test_a_size_and_a_drift_that_exclude_each_other_are_a_stated_result(again, tmp_path, capsys):
    assert again(tmp_path / "out", "budget.bits=5", "budget.drift=1e-4") == 0
    said = capsys.readouterr().out
    assert "5bits and budget.drift=0.0001 contradict each other: the least drift that was found" in said
    assert "search: knapsack within bits=5, drift=0.0001, of affine4, affine8: about " in said
    assert "1 case of the search and 1 case held out" in said
    assert re.search(r"a step of \S+ takes .* for this search", said)


@pytest.mark.slow
def test_families_of_rules_need_no_scan(search, tmp_path, undrawn):
    pytest.importorskip("optuna")
    out = tmp_path / "out"
    assert search(out, BUDGET, "strategy=optuna") == 0
    found = Search.open(out)
    assert found.findings.scan is None
    assert set(found.recipes["strategy"]) == {"plain", "uniform", "optuna"}
    assert found.recipes["predicted"].isna().all()
    trials = found.trials[found.trials["strategy"] == "optuna"]
    assert trials["number"].max() == 4
    assert np.isfinite(trials["rel_l2"]).all()
    assert (found.recipes.query("budget == '6bits'")["bytes"] <= found.findings.limits["6bits"]).all()
    assert (out / "optuna" / "6bits.log").stat().st_size


def test_the_recipes_in_markdown(finished, tmp_path, capsys):
    copy = shutil.copytree(finished, tmp_path / "copy")
    assert main(["report", f"run={copy}", "format=md"]) == 0
    out = capsys.readouterr().out
    assert "**Recipes for " in out
    assert "| recipe | by | GB |" in out


@pytest.mark.slow
def test_the_report_is_made_again_from_the_tables(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    (folder / "report.html").unlink()
    shutil.rmtree(folder / "figures")
    assert main(["report", f"run={folder}"]) == 0
    assert (folder / "report.html").read_bytes() == (finished / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("overrides", "said"),
    thinned(
        [
            ((), "The budget is empty"),
            (("budget.bits=[]",), "The budget is empty"),
            (("budget.bits=2",), r"budget\.bits=2 cannot be met: .* the smallest is bits=4\.\d+"),
            (("budget.gb=1e-6",), r"budget\.gb=1e-06 cannot be met: .* the smallest is gb=0\.000"),
            (("budget.bits=16",), "leaves nothing to search"),
            (("budget.gb=1", "budget.bits=5"), "both limit the size; expected one"),
            (("budget.bits=-1",), "expected a number above 0"),
            (("budget.size=5",), r"Unknown setting 'budget\.size'"),
            ((BUDGET, "candidate=[affine44]"), "Unknown candidate 'affine44'"),
            ((BUDGET, "candidate=[]"), "candidate is empty"),
            ((BUDGET, "strategy=knap"), "Did you mean knapsack"),
            ((BUDGET, "by=[kind]"), "unknown key 'kind'"),
            ((BUDGET, "of=[nowhere.*]"), "nowhere"),
            ((BUDGET, "include=[affine88]"), "affine88"),
            ((BUDGET, "holdout.prompts=[]"), "no case is left"),
            ((BUDGET, "holdout.prompts=[a]", "holdout.seeds=[0]"), "is a case of the search too"),
            ((BUDGET, "sensitivity=/nowhere"), "/nowhere"),
            ((BUDGET, "budget.latency=0.9"), r"needs measured times, run the scan with scan\.rounds=5"),
            (("strategy=optuna", "budget.drift=0.1"), "searches within a size"),
            ((BUDGET, "dtype=float8"), "dtype"),
        ],
        keep=6,
    ),
)
def test_a_mistake_is_one_line_and_leaves_nothing(search, tmp_path, capsys, overrides, said):
    out = tmp_path / "out"
    assert search(out, *overrides) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) <= 2
    assert re.search(said, error), error
    assert not out.exists()


def altered(finished, folder, change):
    """A copy of the scan of a search whose manifest is changed."""
    shutil.copytree(finished / "sensitivity", folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return folder


def test_sensitivities_of_other_weights_are_refused(search, finished, tmp_path, capsys):
    folder = altered(finished, tmp_path / "scan", lambda manifest: manifest["checkpoint"].update(fingerprint="0" * 64))
    assert search(tmp_path / "out", BUDGET, f"sensitivity={folder}") == 2
    assert "is of other weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sensitivities_that_are_not_finished_are_refused(search, finished, tmp_path, capsys):
    folder = altered(finished, tmp_path / "scan", lambda manifest: manifest.update(status="interrupted"))
    assert search(tmp_path / "out", BUDGET, f"sensitivity={folder}") == 2
    assert "not finished" in capsys.readouterr().err


def test_sensitivities_without_times_meet_no_latency(again, tmp_path, capsys):
    assert again(tmp_path / "out", "budget.latency=0.9") == 2
    assert "scan.rounds=5" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_budget_of_time(search, tmp_path, capsys, undrawn):
    """Times are measured, so that only a limit far from any of them has a known result."""
    out, quick = tmp_path / "out", ("scan.rounds=1", "trials.sizes=0", "trials.evaluations=1", "of=[proj_out,img_in]")
    assert search(out, "budget.latency=100", *quick) == 0
    found = Search.open(out)
    assert list(found.findings.found) == ["100latency"]
    capsys.readouterr()
    never = ("budget.latency=1e-9", f"sensitivity={out / 'sensitivity'}", *quick)
    assert search(tmp_path / "never", *never) == 2
    assert "the fastest choice is predicted to take" in capsys.readouterr().err
    assert not (tmp_path / "never").exists()


def test_a_candidate_that_the_scan_did_not_measure_is_refused(again, tmp_path, capsys):
    assert again(tmp_path / "out", BUDGET, "candidate=[affine3]") == 2
    assert "did not measure it. Did you mean affine" in capsys.readouterr().err


def test_a_candidate_that_was_another_when_it_was_scanned_is_refused(again, tmp_path, capsys):
    changed = "candidate.affine4.rules=[{sites: SITES, bits: 3}]"
    assert again(tmp_path / "out", BUDGET, "candidate=[affine4]", changed) == 2
    assert "is not what" in capsys.readouterr().err


@pytest.mark.slow
def test_a_plain_model_that_drifts_more_than_allowed_is_a_stated_result(search, tmp_path, capsys):
    assert search(tmp_path / "out", "budget.drift=1e-6", "dtype=bfloat16") == 0
    assert "cannot be met: the plain model itself drifts" in capsys.readouterr().out


def test_an_experiment_may_narrow_the_ranges_that_search_does_not_record(again, tmp_path, monkeypatch):
    """The search is stopped at its first trial, when its configuration is written."""

    def stopped(self, pairs, cases):
        raise KeyboardInterrupt

    monkeypatch.setattr(searching.Search, "_outcomes", stopped)
    (tmp_path / "conf" / "exp").mkdir(parents=True)
    own = "# @package _global_\nprobe: {range: {sites: [proj_out]}}\n"
    (tmp_path / "conf" / "exp" / "own.yaml").write_text(own)
    assert again(tmp_path / "out", BUDGET, "--config-dir", str(tmp_path / "conf"), "+exp=own") == 130
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["probe"] == {}
