"""The command line: exit codes, one-line errors, and nothing left behind by a mistake."""

import json
from pathlib import Path

import mlx.core as mx
import pandas as pd
import pytest

from precision_lab.cli import compare_tables, main
from precision_lab.cli.paths import checkpoints_dir, conf_dir
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from tests.spread import thinned
from tests.undrawn import undrawn, unrendered

QUICK = (
    *("sampler.steps=2", "image.height=32", "image.width=48", "prompts=[a red circle]", "seeds=[0]"),
    *("latency.min_rounds=0", "latency.max_rounds=0", "pinned.cases=null"),
)


@pytest.fixture
def lab(small_checkpoint, tmp_path, monkeypatch, capsys):
    """Runs the command line in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*args, quick=True):
        settings = (f"model.path={small_checkpoint}", *QUICK) if quick else ()
        code = main([*args, *settings])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@unrendered()
def test_an_experiment_from_configuration_to_report(lab, tmp_path):
    code, out, err = lab("+exp=ffn_scaling", f"out={tmp_path}/run")
    assert (code, err) == (0, "")
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["variants"]) == {"reference", "baseline", "ffn_scaling", "reordered"}
    assert summary["weights"] == "synthetic"
    assert {claim["id"] for claim in summary["claims"]} == {"S3_ffn_amax", "S3_stream_amax", "S3_drift"}
    page = (run / "report.html").read_text()
    assert "synthetic" in page.lower()
    assert out.rstrip().endswith("report.html")
    assert "ffn_scaling" in out
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "nothing else is left in the working folder"


def test_the_default_run_folder_and_its_report_again_from_the_tables(lab, tmp_path):
    with undrawn():
        assert lab("+exp=baseline", "only=[baseline]")[0] == 0
    (run,) = (tmp_path / "results" / "runs" / "baseline").iterdir()
    assert len(run.name) == len("20260101T000000Z")
    before = json.loads((run / "summary.json").read_text())
    assert not (run / "report.html").exists()
    (run / "summary.json").unlink()
    with unrendered():
        assert lab("report", f"run={run}", quick=False)[0] == 0
    assert (run / "report.html").is_file()
    assert any((run / "figures").glob("*.svg"))
    assert json.loads((run / "summary.json").read_text()) == before


@unrendered()
@pytest.mark.parametrize("probe", ["[]", "[range]"])
def test_a_run_where_every_variant_fails_or_nothing_is_probed(lab, tmp_path, monkeypatch, probe):
    if probe == "[range]":
        from precision_lab.techniques.ffn_scaling import _Scaled

        monkeypatch.setattr(_Scaled, "__call__", lambda self, x: 1 / 0)
    arguments = ("+exp=ffn_scaling", "only=[ffn_scaling]", f"probe={probe}", "drift.sites=[pipeline:euler_step]")
    code, out, err = lab(*arguments, f"out={tmp_path}/run")
    assert (code, err) == (1 if probe == "[range]" else 0, "")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    broken = summary["variants"]["ffn_scaling"]
    assert broken["amax_final"] is None
    assert broken["num_nonfinite"] is None
    assert broken["num_nonfinite_reason"] == "not recorded"
    if probe == "[range]":
        assert broken["error"].startswith("ZeroDivisionError: division by zero (")
        assert f"{Path(__file__).name}:" in broken["error"], "the file and the line that raised it"
        trace = (tmp_path / "run" / "errors" / "ffn_scaling.txt").read_text()
        assert trace.startswith("Traceback")
        assert "ZeroDivisionError" in trace
        assert "division by zero" in out
    assert summary["claims"] == [], "they compare it with a variant that was left out"
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
@undrawn()
def test_compare_two_runs(lab, tmp_path):
    for name, dtype in (("a", "bfloat16"), ("b", "float16")):
        lab("only=[baseline]", f"dtype={dtype}", f"out={tmp_path}/{name}")
    code, out, err = lab("compare", f"runs=[{tmp_path}/a,{tmp_path}/b]", quick=False)
    assert (code, err) == (0, "")
    assert "latent_rel_l2" in out
    assert "bfloat16" in out


@undrawn()
def test_technique_adds_a_variant_and_changes_no_other(lab, tmp_path):
    lab("technique=[ffn_scaling,fp32_norm_out]", f"out={tmp_path}/a")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert list(summary["variants"]) == ["reference", "baseline", "custom"]
    assert summary["variants"]["custom"]["techniques"] == ["ffn_scaling", "fp32_norm_out"]
    assert summary["variants"]["baseline"]["techniques"] == []


THIRD_PARTY = """
import dataclasses
from precision_lab.instrument.sites import Wrapper

class _Doubled(Wrapper):
    def __call__(self, x):
        return 2 * self.inner(x)

@dataclasses.dataclass(frozen=True)
class Double:
    sites: tuple = ("proj_out",)
    preserves_function: bool = False
    composes: bool = False
    def rewrite(self, site):
        return _Doubled(site.module)

@dataclasses.dataclass(frozen=True)
class Peak:
    sites: tuple = ("norm_out",)
    ports: tuple = ("out",)
    def measure(self, x):
        return {"my_peak": abs(x).max()}
"""


@undrawn()
def test_a_third_party_technique_probe_and_experiment(lab, tmp_path, monkeypatch):
    (tmp_path / "their_package.py").write_text(THIRD_PARTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    conf = tmp_path / "their_conf"
    for group in ("technique", "probe", "exp"):
        (conf / group).mkdir(parents=True)
    (conf / "technique" / "double.yaml").write_text("double:\n  _target_: their_package.Double\n")
    (conf / "probe" / "peak.yaml").write_text("peak:\n  _target_: their_package.Peak\n")
    (conf / "exp" / "theirs.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /technique@variants.doubled.technique: [double]\n  - _self_\n"
        "experiment: theirs\n"
    )
    code, _, err = lab("--config-dir", str(conf), "+exp=theirs", "probe=[range,peak]", f"out={tmp_path}/run")
    assert (code, err) == (0, "")
    from precision_lab.record.tables import read

    rows = read(tmp_path / "run", "activations").query("site == 'norm_out'")
    assert set(rows["variant"]) == {"reference", "baseline", "doubled"}
    assert (rows["my_peak"] - rows["amax"]).abs().max() == 0


@pytest.mark.parametrize(
    ("args", "message"),
    thinned(
        [
            (("+exp=ffn_scalling",), "Unknown experiment 'ffn_scalling'. Did you mean ffn_scaling"),
            (("technique=[ffn_scalng]",), "Unknown technique 'ffn_scalng'. Did you mean ffn_scaling"),
            (("model=mirco",), "Unknown model 'mirco'. Did you mean micro"),
            (("sampler.stpes=3",), "Unknown setting 'sampler.stpes'. Did you mean sampler.steps"),
            (("dtpye=float16",), "Unknown setting 'dtpye'. Did you mean dtype"),
            (("dtype=bf16",), "expected one of float32, bfloat16, float16"),
            (("model.weights_dtype=int8",), "expected one of"),
            (
                ("model.inflate=3",),
                "model.inflate is 3, expected a power of two: others are not exact. Nearest: 2 or 4",
            ),
            (("model.inflate=-4",), "expected a power of two from"),
            (("model.inflate=2**4",), "'2**4', expected a number"),
            (("model.inflate=true",), "expected a number"),
            (("model.inflat=2",), "Unknown setting 'model.inflat'. Did you mean model.inflate"),
            (("dtype=float16", "model.inflate=4096"), "img_in.bias overflows in float16"),
            (("model.path=synthetic://mirco",), "unknown preset. Did you mean micro"),
            (("model.path=synthetic://full",), "models make=full to=DIR"),
            (("sampler.steps=0",), "sampler.steps is 0, expected at least 1"),
            (("sampler.steps=many",), "'many', expected a whole number"),
            (("image.height=100",), "expected a multiple of 16"),
            (("image.height=-16",), "image.height is -16, expected 1 to 16384 pixels"),
            (("prompts=['']",), "expected text"),
            (("prompts=a",), "expected a list"),
            (("seeds=[-1]",), "expected integers"),
            (("only=[basline]",), "unknown variant 'basline'. Did you mean baseline"),
            (("+variants.x.dtypo=float16",), "Unknown setting 'variants.x.dtypo'. Did you mean dtype"),
            (("probe.range.sites=[transformer_blocks.*.img_mpl]",), "matches nothing. Did you mean"),
            (("drift.sites=[vea:decoder]",), "unknown component 'vea'"),
            (("+technique.x._target_=nowhere.Thing",), "nowhere"),
            (("+technique.x._target_=builtins.dict",), "is no Technique, it lacks"),
            (("+technique.x.a=1",), "expected a mapping with a _target_"),
            (("model=full_synthetic", "model.path=null"), "Give model.path=DIR"),
            (("model=full_21_synthetic",), "models make=full_21 to=DIR"),
            (("model.path=/nowhere/at/all",), "neither a folder nor a Hub id"),
            (("baseline=nobody", "+variants.nobody.dtype=bf17"), "expected one of"),
            (("resume=true",), "holds no run"),
            (("--config-dir", "/nowhere"), "no such folder"),
            (("out=/proc/nowhere/run",), "cannot be written"),
            (("rnu",), "Unknown command 'rnu'. Did you mean run"),
            (("a=b=c",), ""),
            (("",), "Unknown command ''"),
            (("--hydra-help",), "not supported"),
            (("--nonsense",), "--nonsense"),
            (("+sampler.foo=1",), "Unknown setting 'foo'"),
            (("drift=3",), "expected settings below it"),
            (("+claims.a=3",), "claims.a is 3, expected settings below it, like claims.a.NAME=VALUE"),
            (("out=[a]",), "expected a folder"),
            (("resume=maybe",), "resume is 'maybe', expected true or false"),
            (("latency.max_seconds=0",), "expected above 0"),
            (("latency.max_seconds=nan",), "latency.max_seconds is nan, expected a finite number"),
            (("latency.warmup_rounds=-3",), "latency.warmup_rounds is -3, expected at least 0"),
            (("latency.margin=abc",), "latency.margin is 'abc', expected a number above 0, or null"),
            (("latency.margin=true",), "latency.margin is True"),
            (("latency.max_rounds=2.5",), "latency.max_rounds is 2.5, expected a whole number like 100"),
            (("drift.sites=abc",), "drift.sites is 'abc', expected a list like drift.sites=[a,b]"),
            (("drift.sites=null",), "drift.sites is None, expected a list"),
            (("drift.teacher=null",), "drift.teacher is None, expected settings below it"),
            (("drift.teacher.sites=5",), "drift.teacher.sites is 5, expected a list"),
            (("prompts=hello",), "prompts is 'hello', expected a list"),
            (("experiment=123",), "experiment is 123, expected a name"),
            (("only=[1]",), "only[0] is 1, expected text"),
            (("baseline=custom",), "unknown variant 'custom'"),
            (("gate", "gate.update=true", "prompts=hello"), "prompts is 'hello', expected a list"),
            (("gate", "gate.update=true", "seeds=5"), "seeds is 5, expected a list"),
            (
                ("gate", "gate.learn.seeds=5"),
                "gate.learn.seeds is 5, expected a list like gate.learn.seeds=[a,b], or null",
            ),
            (("gate", "gate.learn=null"), "gate.learn is None, expected settings below it"),
            (("seeds=[18446744073709551616]",), "expected integers"),
            (("seeds=[true]",), "seeds[0] is True, expected a whole number"),
            (("baseline=basline",), "unknown variant 'basline'. Did you mean baseline"),
            (("experiment=../x",), "expected letters"),
            (("sampler.negative_prompt=null",), "expected text"),
            (("probe.range.ports=[output]",), "expected one of in, out"),
            (("+variants.new.technique=[ffn_scaling]",), "/technique@variants.new.technique"),
            (("-m", "nosuch=1,2"), "Unknown setting 'nosuch'"),
            (("-m", "dtype=bfloat16,float16", "out=x"), "${hydra:job.num}"),
            (("report",), "report needs run=DIR"),
            (("report", "run=/nowhere"), "not the folder of a run"),
            (("compare", "runs=[a]"), "compare needs runs=[A,B]"),
            (("models", "make=micor", "to=x"), "unknown preset. Did you mean micro"),
            (("models", "make=micro"), "needs to=DIR"),
        ],
        keep=9,
    ),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes(lab, tmp_path, args, message):
    names_a_command = args[0] in ("report", "compare", "models", "rnu", "")
    overridden = {a.split("=")[0] for a in args}
    settings = [s for s in ("model=micro_synthetic", *QUICK) if s.split("=")[0] not in overridden]
    code, out, err = lab(*args, *([] if names_a_command else settings), quick=False)
    assert code == 2, out
    assert message in err
    assert 1 <= len(err.strip().splitlines()) <= 2
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [], "a mistake must leave nothing behind"


@pytest.mark.parametrize("setting", ["sampler.steps=0", "dtype=bf16", "seeds=[-1]", "model.inflate=3", "nosuch=1"])
def test_no_checkpoint_is_made_for_settings_that_fit_no_run(lab, tmp_path, monkeypatch, setting):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert lab("model=micro_synthetic", setting, quick=False)[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_one_line(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    code, _, err = lab("model=micro_synthetic", quick=False)
    assert code == 2
    assert err.startswith("model.path synthetic://micro cannot be kept in the user's cache")
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@undrawn()
def test_micro_synthetic_is_made_on_demand(lab, tmp_path, micro_synthetic):
    quick = (*QUICK, "sampler.steps=1", "probe=[]", "drift.sites=[pipeline:euler_step]")
    code, out, err = lab("model=micro_synthetic", f"out={tmp_path}/run", *quick, quick=False)
    assert (code, err) == (0, "")
    checkpoint = json.loads((tmp_path / "run" / "manifest.json").read_text())["checkpoint"]
    assert (checkpoint["name"], checkpoint["path"]) == ("micro_synthetic", "synthetic://micro")
    assert checkpoint["weights"] == "synthetic"
    assert checkpoint["fingerprint"] == Checkpoint(micro_synthetic).fingerprint()
    assert "stream x" not in out


def test_the_embedded_checkpoint_is_complete():
    Checkpoint(checkpoints_dir() / "micro").pipeline(mx.float32)


@pytest.mark.slow
def test_inflated_streams_are_named_wherever_the_weights_are(lab, tmp_path):
    plain, inflated = tmp_path / "plain", tmp_path / "inflated"
    with undrawn():
        assert lab("model.inflate=1", f"out={plain}")[0] == 0
    with unrendered():
        code, out, err = lab("model.inflate=4096", f"out={inflated}")
    assert (code, err) == (0, "")
    assert "stream x4096" in out
    assert "Synthetic weights, stream x4096: generated" in (inflated / "report.html").read_text()
    assert "inflate: 4096" in (inflated / "config.yaml").read_text()
    manifests, summaries = (
        [json.loads((run / name).read_text()) for run in (plain, inflated)]
        for name in ("manifest.json", "summary.json")
    )
    assert [manifest["checkpoint"]["settings"]["inflate"] for manifest in manifests] == [1, 4096]
    assert [summary["notes"] for summary in summaries] == [[], ["stream x4096"]]
    assert manifests[0]["checkpoint"]["fingerprint"] != manifests[1]["checkpoint"]["fingerprint"]
    for variant in ("reference", "baseline"):
        before, after = (summary["variants"][variant] for summary in summaries)
        assert after["amax_final"] == 4096 * before["amax_final"]
        assert after["latent_rel_l2"] == before["latent_rel_l2"], "the same function, bit for bit"
        image = f"images/{variant}__p0__s0.png"
        assert (inflated / image).read_bytes() == (plain / image).read_bytes()


def test_debug_shows_the_traceback(lab, monkeypatch):
    monkeypatch.setenv("PRECISION_LAB_DEBUG", "1")
    code, _, err = lab("sampler.steps=0", quick=False)
    assert code == 2
    assert "Traceback" in err


@undrawn()
@pytest.mark.parametrize(
    ("expect", "code"), [("finite", 0), pytest.param("any", 0, marks=pytest.mark.slow), ("nonfinite", 1)]
)
def test_expectations_decide_the_exit_code(lab, tmp_path, expect, code):
    assert lab(f"variants.baseline.expect={expect}", f"out={tmp_path}/run")[0] == code


@undrawn()
@pytest.mark.parametrize(("gate", "code"), [("true", 1), pytest.param("false", 0, marks=pytest.mark.slow)])
def test_a_refuted_claim_fails_only_if_it_gates(lab, tmp_path, gate, code):
    claim = f"{{text: t, source: s, metric: nonfinite, relation: nonzero, subject: baseline, gate: {gate}}}"
    assert lab(f"+claims.X={claim}", f"out={tmp_path}/run")[0] == code


def test_a_malformed_claim_is_refused_before_the_run(lab, tmp_path):
    code, _, err = lab("+claims.X={text: t, source: s, metric: amx, relation: equal, subject: baseline}")
    assert code == 2
    assert "Did you mean amax" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@unrendered()
@undrawn()
def test_multirun_returns_the_largest_code(lab, tmp_path):
    code, _, _ = lab("-m", "variants.baseline.expect=finite,nonfinite", "out=run-${hydra:job.num}")
    assert code == 1
    assert {path.name for path in tmp_path.glob("run-*")} == {"run-0", "run-1"}
    assert not (tmp_path / "multirun.yaml").exists()


@pytest.mark.slow
@unrendered()
def test_a_sweep_leaves_one_table_and_writes_into_its_folder_alone(lab, tmp_path):
    code, out, err = lab("-m", "dtype=bfloat16,float32", "drift.sites=[pipeline:euler_step]", "probe=[]")
    assert (code, err) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["multirun"]
    (path,) = tmp_path.glob("results/multirun/*/sweep.csv")
    names = {"0", "1", "multirun.yaml", "sweep.csv", "index.html", "figures"}
    assert {entry.name for entry in path.parent.iterdir()} == names
    assert f"table: {path.relative_to(tmp_path)}" in out
    assert out.rstrip().endswith(f"report: {path.parent.relative_to(tmp_path)}/index.html")
    table = pd.read_csv(path, dtype={"run": str})
    assert table["run"].tolist() == ["0", "1"]
    assert table["dtype"].tolist() == ["bfloat16", "float32"]
    for row in table.itertuples():
        summary = json.loads((path.parent / str(row.run) / "summary.json").read_text())
        assert row.latent_rel_l2 == summary["variants"]["baseline"]["latent_rel_l2"]
        assert compare_tables.cell(row.latent_rel_l2) in out
    assert "identical" in out, "the picture of the fp32 variant is the reference's"


def test_a_sweep_whose_jobs_leave_no_run_has_no_table(lab, tmp_path):
    code, out, _ = lab("-m", "dtype=bf16,bf17", "out=run-${hydra:job.num}")
    assert code == 2
    assert "Sweep" not in out
    assert not list(tmp_path.rglob("sweep.csv"))


def test_cfg_shows_the_configuration(lab):
    code, out, _ = lab("+exp=ffn_scaling", "--cfg", "job", quick=False)
    assert code == 0
    assert "FFNScaling" in out


def test_help_names_every_experiment_and_technique(lab):
    code, out, _ = lab("--help", quick=False)
    assert code == 0
    for group in ("exp", "technique", "model", "sampler"):
        for file in (conf_dir() / group).glob("[!_]*.yaml"):
            assert file.stem in out


def test_interrupt(lab, tmp_path, monkeypatch):
    from precision_lab.lab import bench

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "generation", interrupted)
    code, _, err = lab(f"out={tmp_path}/run")
    assert code == 130
    assert "resume=true" in err
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "interrupted"


def test_a_full_disk_is_one_line(lab, tmp_path, monkeypatch):
    from precision_lab.record.files import File

    def full(*args):
        raise OSError(28, "No space left on device", "part-x.parquet")

    monkeypatch.setattr(File, "write", full)
    code, _, err = lab(f"out={tmp_path}/run")
    assert code == 2
    assert err.startswith("No space left on the disk")
    assert json.loads((Path(tmp_path) / "run" / "manifest.json").read_text())["status"] == "failed"


@pytest.mark.slow
def test_models_lists(lab):
    code, out, _ = lab("models", quick=False)
    assert code == 0
    assert "qwen_image" in out
    assert "model=micro_synthetic" in out


@pytest.mark.slow
def test_models_makes(lab, tmp_path):
    code, _, _ = lab("models", "make=micro", f"to={tmp_path}/made", "seed=5", quick=False)
    assert code == 0
    assert (tmp_path / "made" / "model_index.json").is_file()
