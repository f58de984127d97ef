"""`culprits`: planted culprits are found, the recipe runs by name, and what cannot be answered is said."""

import json
import re
import shutil

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest
import yaml

from experiments.culprits.cases import cases, why_not
from experiments.culprits.plants import CASE, KINDS, budget, healthy, planted
from precision_lab.cli import main
from precision_lab.lab import bench
from precision_lab.record.culprits import Culprits
from precision_lab.record.manifest import Manifest
from tests.spread import thinned
from tests.undrawn import undrawn, unrendered

KIND = {kind.name: kind for kind in KINDS}
FEED_FORWARDS = "of=['transformer_blocks.*.{img,txt}_mlp']"
OVERFLOW = ("dtype=float16", "candidate=[float32]", "at=found", FEED_FORWARDS, "checks=1", "criterion=finite")
FOUR_BITS = ("candidate=[affine4]", "of=['transformer_blocks.*.{img_mlp.net.2,attn.to_out.0}']")
QUIET = ("latency.min_rounds=0", "latency.max_rounds=0", "probe.range.sites=['proj_out']")


@pytest.fixture(scope="module")
def fragile(small_checkpoint, tmp_path_factory):
    """A checkpoint with two feed-forwards that overflow inside in float16, and their addresses."""
    for seed in range(100):
        folder = tmp_path_factory.mktemp("fragile") / "model"
        sites = planted(small_checkpoint, folder, KIND["overflow"], seed)
        if len(sites) == 2:
            return folder, sites
    raise AssertionError("no seed plants two")


@pytest.fixture(scope="module")
def culprits(fragile):
    def call(out, *overrides, model=fragile[0]):
        return main(["culprits", f"model.path={model}", *CASE, f"out={out}", *overrides])

    return call


@pytest.fixture(scope="module")
def finished(culprits, tmp_path_factory):
    out = tmp_path_factory.mktemp("culprits") / "search"
    assert culprits(out, *OVERFLOW) == 0
    return out


def test_what_it_leaves(finished, fragile):
    found, trials = Culprits.read(finished), pd.read_parquet(finished / "trials.parquet")
    assert {each.group for each in found.culprits} == fragile[1]
    assert sorted(each.found for each in found.culprits) == [1, 2]
    assert found.runs <= found.bound
    assert found.is_minimal
    assert found.is_only
    assert found.violations == 0
    assert found.validation.holds
    assert found.validation.prompts == ["a blue square"]
    for each in found.culprits:
        assert not each.without.finite
        assert each.without.first_site.startswith(each.group)
        [row] = trials[trials["trial"] == each.without.trial].to_dict("records")
        assert not row["holds"]
        assert row["spared"] == 1
    assert trials["run"].nunique() == found.runs + found.checks + 1
    assert trials["stage"].value_counts()["validation"] == 1
    page = (finished / "report.html").read_text().replace("<wbr>", "")  # where names may break
    for text in (*fragile[1], "only minimal set", "Validated on 1 case", "synthetic"):
        assert text in page
    assert Manifest.read(finished).status == "complete"
    assert {path.name for path in finished.iterdir()} == {
        *("config.yaml", "manifest.json", "culprits.json", "trials.parquet", "report.html"),
        *("figures", "technique", "trials"),
    }


@undrawn()
def test_the_recipe_runs_by_name_and_no_site_of_it_can_be_switched_off(finished, fragile, tmp_path):
    """In one run: the recipe as `technique=culprits`, and for each of its sites a variant without it."""
    model, sites = fragile
    conf = tmp_path / "conf"
    shutil.copytree(finished / "technique", conf / "technique")
    [(name, node)] = yaml.safe_load((conf / "technique" / "culprits.yaml").read_text()).items()
    less = {f"without_{site}": {**node, "sites": sorted(sites - {site})} for site in sites}
    variants = {key: {"dtype": "float16", "technique": {name: each}} for key, each in less.items()}
    (conf / "exp").mkdir()
    (conf / "exp" / "less.yaml").write_text(f"# @package _global_\n{yaml.safe_dump({'variants': variants})}")
    case = [each for each in CASE if not each.startswith("by=")]
    arguments = ["--config-dir", str(conf), f"model.path={model}", *case, *QUIET, "dtype=float16", "+exp=less"]
    only = f"only=[custom,{','.join(variants)}]"
    assert main(["run", *arguments, "technique=culprits", only, f"out={tmp_path / 'run'}"]) == 0
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["variants"]
    assert found["custom"]["first_nonfinite"] is None
    for site in sites:
        assert found[f"without_{site}"]["first_nonfinite"]["site"].startswith(site)


# by default, test_sensitivity_command.py kills a scan and tests/foreign a run
@pytest.mark.slow
@unrendered()
def test_a_killed_search_continues_to_the_same_result(finished, culprits, tmp_path, monkeypatch):
    original, made = bench.Bench.make, []

    def killed(self, variant, *rest):
        made.append(variant.name)
        if len(made) == 6:
            raise KeyboardInterrupt
        return original(self, variant, *rest)

    out = tmp_path / "search"
    with monkeypatch.context() as patch:
        patch.setattr(bench.Bench, "make", killed)
        assert culprits(out, *OVERFLOW) == 130
    assert not (out / "culprits.json").exists()
    assert culprits(out, *OVERFLOW, "resume=true") == 0
    assert (out / "culprits.json").read_text() == (finished / "culprits.json").read_text()
    pd.testing.assert_frame_equal(pd.read_parquet(out / "trials.parquet"), pd.read_parquet(finished / "trials.parquet"))
    assert made.count("reference") == 1


def test_the_search_in_markdown(finished, tmp_path, capsys):
    copy = shutil.copytree(finished, tmp_path / "copy")
    assert main(["report", f"run={copy}", "format=md"]) == 0
    out = capsys.readouterr().out
    assert "| found | group | sites | without it |" in out
    assert "groups must be spared" in out
    assert main(["report", f"run={copy}", "format=badge"]) == 2
    assert "has the formats html and md" in capsys.readouterr().err


def test_the_report_is_drawn_again(finished, capsys):
    before = (finished / "report.html").read_text()
    assert main(["report", f"run={finished}"]) == 0
    assert (finished / "report.html").read_text() == before
    assert "must be spared" in capsys.readouterr().out


@pytest.mark.slow
def test_a_technique_on_the_rest_spares_what_matters(small_checkpoint, culprits, tmp_path):
    """A maximal set that may be narrow is what the recipe of `at=rest` names."""
    model = tmp_path / "model"
    sites = planted(small_checkpoint, model, KIND["channel"], 3)
    out = tmp_path / "search"
    assert culprits(out, *FOUR_BITS, "criterion.drift=0.25", model=model) == 0
    found = Culprits.read(out)
    assert {each.group for each in found.culprits} <= sites
    recipe = yaml.safe_load((out / "technique" / "culprits.yaml").read_text())
    assert list(recipe["affine4"]["rules"][0]["sites"]) == list(found.rest)
    assert found.nothing_spared.value > 0.25
    trials = pd.read_parquet(out / "trials.parquet")
    assert (trials["weights_gb"].diff().dropna() != 0).any()


@pytest.mark.slow
def test_a_plant_takes_only_if_its_sites_are_the_culprits(fragile, tmp_path):
    """By direct runs: a site that does no harm is no culprit, and those that are left narrow spoil the rest."""
    model, sites = fragile
    assert why_not(model, tmp_path / "exact", KIND["overflow"], sites, drift=0) is None
    more = why_not(model, tmp_path / "more", KIND["overflow"], {*sites, "transformer_blocks.0.attn.attend"}, drift=0)
    assert more == "with transformer_blocks.0.attn.attend alone narrow, the criterion holds"
    less = why_not(model, tmp_path / "less", KIND["overflow"], {min(sites)}, drift=0)
    assert less == "with all planted sites wide, the criterion fails"


@pytest.mark.parametrize(
    ("overrides", "words"),
    thinned(
        [
            ((*FOUR_BITS, "criterion.drift=100"), "Nothing to find"),
            (("dtype=float16", "candidate=[float32]", "at=found", "of=[proj_out]"), "No set will do"),
        ],
        keep=1,
    ),
)
def test_a_search_without_an_answer_says_so(culprits, tmp_path, capsys, overrides, words):
    assert culprits(tmp_path / "out", *overrides) == 0
    said = capsys.readouterr().out
    assert words in said
    assert re.search(r"culprits: which of \d+ groups? must be spared, so that .*: at most \d+ runs if 1 must", said)
    assert f"folder: {tmp_path}" in said
    assert words in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "technique").exists()


@pytest.mark.slow
def test_between_two_variants(culprits, fragile, tmp_path):
    sites = fragile[1]
    conf = tmp_path / "conf" / "exp"
    conf.mkdir(parents=True)
    wide = {"_target_": "precision_lab.techniques.float32.Float32", "sites": ["transformer_blocks.*.{img,txt}_mlp"]}
    variants = {"good": {"dtype": "float16", "technique": {"wide": wide}}, "bad": {"dtype": "float16"}}
    (conf / "two.yaml").write_text(f"# @package _global_\n{yaml.safe_dump({'variants': variants})}")
    between = ("--config-dir", str(conf.parent), "+exp=two", "between=[good,bad]")
    assert culprits(tmp_path / "out", *between, "checks=0") == 0
    found = Culprits.read(tmp_path / "out")
    assert {each.group for each in found.culprits} == sites
    assert found.groups == 8
    assert (found.altered, found.spared) == ("as in bad", "as in good")


@pytest.mark.slow
@unrendered()
def test_between_two_checkpoints(culprits, small_checkpoint, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(small_checkpoint, bad)
    [file] = (bad / "transformer").glob("*.safetensors")
    tensors, metadata = mx.load(str(file), return_metadata=True)
    rng = np.random.default_rng(5)
    harmful, harmless = "transformer_blocks.1.img_mlp.net.2", ("proj_out", "transformer_blocks.2.attn.to_k")
    for name, noise in ((harmful, 20.0), *((other, 1e-6) for other in harmless)):
        key = f"{name}.weight"
        old = tensors[key].astype(mx.float32)
        scale = noise * float(mx.sqrt(mx.mean(old**2)))
        tensors[key] = old + mx.array(scale * rng.standard_normal(old.shape).astype(np.float32))
    mx.save_safetensors(str(file), tensors, metadata)
    out = tmp_path / "out"
    between = f"between=['{small_checkpoint}','{bad}']"
    assert culprits(out, between, "criterion.drift=0.01", "checks=0") == 0
    found = Culprits.read(out)
    assert [each.group for each in found.culprits] == [harmful]
    assert found.groups == 3
    assert found.all_spared.value == 0
    assert culprits(tmp_path / "no", f"between=['{small_checkpoint}','{small_checkpoint}/.']") == 2
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_a_claim_as_the_criterion(culprits, fragile, tmp_path):
    claim = "{text: t, source: s, metric: drift, relation: smaller, subject: baseline, bound: 1.0}"
    assert culprits(tmp_path / "out", *OVERFLOW[:-1], f"+claims.small={claim}", "criterion.claim=small") == 0
    found = Culprits.read(tmp_path / "out")
    assert found.criterion == "claim small is supported"
    assert found.status == "impossible"  # an interval needs at least three prompts
    more = "prompts=[a,b,c]"
    assert culprits(tmp_path / "more", *OVERFLOW[:-1], f"+claims.small={claim}", "criterion.claim=small", more) == 0
    assert {each.group for each in Culprits.read(tmp_path / "more").culprits} == fragile[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    thinned(
        [
            (["criterion=finit"], "criterion is 'finit'.*Did you mean finite"),
            (["criterion.metric=psnr", "criterion.least=40"], "criterion.metric.*'psnr'.*Did you mean psnr_db"),
            (["criterion.metric=ssim"], "criterion.least= or criterion.most="),
            (["criterion.most=3"], "criterion.metric=NAME, which is missing"),
            (["criterion.drift=0.1", "criterion.metric=ssim"], "exclude each other"),
            (["criterion.drift=-1"], "criterion.drift is -1"),
            (["criterion.claim=small"], "unknown claim 'small'"),
            (["candidate=[affine5b]"], "Unknown candidate 'affine5b'. Did you mean affine5"),
            (["candidate=[affine4,fp8]"], "candidate names 2 options, expected one"),
            (["by=[blok]"], "by: unknown key 'blok'.*Did you mean block"),
            (["of=[nowhere]"], "Site pattern 'nowhere' matches nothing"),
            (["of=[]"], "of is \\[\\], expected patterns"),
            (["at=everywhere"], "at is 'everywhere', expected one of rest, found"),
            (["between=[baseline]"], "expected two names or paths"),
            (["between=[baseline,basline]"], "'basline' is no variant, and no checkpoint. Did you mean baseline"),
            (["between=[baseline,/tmp]"], "two variants or two checkpoints"),
            (["searched=3"], "searched is 3, but there are 2 prompts"),
            (["validate.seeds=[-1]"], "validate.seeds"),
            (["checks=-1"], "checks is -1"),
            (["chekcs=1"], "Unknown setting 'chekcs'. Did you mean checks"),
        ],
        keep=6,
    ),
)
def test_mistakes_leave_nothing(culprits, tmp_path, capsys, overrides, message):
    assert culprits(tmp_path / "out", *overrides) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert len(error.strip().splitlines()) <= 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_planted_culprits_are_found_exactly_within_the_bound(tmp_path):
    """The cases of `experiments.culprits`."""
    checkpoint = healthy(tmp_path / "healthy")
    drift = budget(checkpoint, tmp_path)
    every = [case for kind in KINDS for case in cases(checkpoint, tmp_path, kind, 0, 10, drift)]
    found = [case for case in every if "rejected" not in case]
    missed = [case for case in found if not case["exact"] or case["runs"] > case["bound"]]
    assert len(found) == 30
    assert len(missed) <= 1, missed
