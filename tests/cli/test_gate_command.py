"""`gate` end to end on a small model: learned, passed, failed, refused."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import mlx.core as mx
import pandas as pd
import pytest

from precision_lab.cli import main
from precision_lab.errors import InputError
from precision_lab.model.qwen_image.block import TransformerBlock
from precision_lab.model.qwen_image.transformer import Transformer
from tests.spread import thinned

SMALL = (
    *("+exp=baseline", "experiment=small", "only=[baseline]", "sampler.steps=1", "image.height=32", "image.width=48"),
    *("prompts=[a red circle]", "seeds=[0]", "latency.min_rounds=0", "latency.max_rounds=0", "pinned.steps=1"),
    *("probe.range.sites=[transformer_blocks.*,norm_out,proj_out,pipeline:euler_step]", "drift.sites=[norm_out]"),
    *("pinned.sites=[transformer_blocks.*,norm_out,proj_out]", "pinned.cases.tall=null"),
    "pinned.cases.faint=null",
    *("pinned.cases.wide.height=32", "pinned.cases.wide.width=48"),
)
LEARN = ("gate.update=true", "gate.learn.prompts=[a blue star]", "gate.learn.seeds=[1]")


@pytest.fixture(scope="module")
def learned(small_checkpoint, tmp_path_factory):
    """A working folder with a baseline and a run that passed, made by the command line."""
    folder = tmp_path_factory.mktemp("gate")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("precision_lab.report.write", lambda run, beside=None: run)  # drawing takes longer than the run
        given = (*SMALL, f"model.path={small_checkpoint}")
        assert main(["gate", *given, *LEARN, "out=learned"]) == 0
        assert main(["gate", *given, "out=passed"]) == 0
    return folder


@pytest.fixture
def gate(learned, small_checkpoint, tmp_path, monkeypatch, capsys):
    """Calls the command in a copy of that folder; returns (exit code, stdout, stderr)."""
    folder = shutil.copytree(learned, tmp_path / "work")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("precision_lab.report.write", lambda run, beside=None: run)

    def call(*arguments, run=False):
        given = (*SMALL, f"model.path={small_checkpoint}") if run else ()
        code = main(["gate", *given, *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_what_it_leaves(learned):
    content = json.loads((learned / "results/baselines/cpu/small.json").read_text())
    (entry,) = content["entries"]
    about = entry["learned_from"]
    assert about["prompts"] == ["a red circle", "a blue star"]
    assert about["seeds"] == [0, 1]
    assert about["noise_floor"]
    assert about["checkpoint"]["weights"] == "synthetic"
    assert len(entry["bands"]) > 3
    record = json.loads((learned / "passed/gate.json").read_text())
    assert record["passed"]
    assert min(record["checks"].values()) > 0
    assert {"ranges", "sketches", "drift", "dtypes"} <= record["checks"].keys()
    suites = ElementTree.parse(learned / "passed/gate.xml").getroot()
    assert int(suites.get("failures")) == 0
    assert "passed" in (learned / "passed/gate.md").read_text()
    history = pd.read_csv(learned / "results/history/cpu/small.csv")
    assert set(history["verdict"]) == {"passed"}
    assert "gate:" not in (learned / "passed/config.yaml").read_text()


def test_a_run_is_judged_again(gate, monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    code, out, err = gate("run=passed", "gate.history=null")
    assert (code, err) == (0, "")
    assert "this device, this MLX version" in out
    assert "ranges" in out
    assert (tmp_path / "summary.md").read_text().startswith("## Gate small on cpu: passed")
    assert len(pd.read_csv("results/history/cpu/small.csv")) == len(
        pd.read_csv("results/history/cpu/small.csv").drop_duplicates()
    )


def test_a_gate_multiplied_twice_is_found_where_it_is(gate, monkeypatch):
    from precision_lab.model.modulation import GatedAdd

    calls = []

    def twice(self, residual, gate, update):
        calls.append(self)
        return residual + gate[:, None] * gate[:, None] * update

    monkeypatch.setattr(GatedAdd, "__call__", twice)
    code, out, err = gate("out=broken", run=True)
    assert (code, err) == (1, "")
    assert calls
    assert "gate: FAILED" in out
    record = json.loads(Path("broken/gate.json").read_text())
    assert not record["passed"]
    first = record["violations"][0]
    assert first["site"] == "transformer_blocks.0"
    assert (first["metric"], first["pinned"], first["step"]) == ("rel_l2", True, 0)
    assert int(ElementTree.parse("broken/gate.xml").getroot().get("failures")) > 0
    assert set(pd.read_csv("results/history/cpu/small.csv")["verdict"]) == {"passed", "failed"}


def test_a_variant_that_raises_fails_the_gate(gate, monkeypatch):
    from precision_lab.model.layers import LayerNorm

    plain = LayerNorm.__call__

    def broken(self, x):
        if x.dtype == mx.bfloat16:
            raise ValueError("no kernel")
        return plain(self, x)

    monkeypatch.setattr(LayerNorm, "__call__", broken)
    code, out, _ = gate("out=broken", run=True)
    assert code == 1
    assert "no kernel" in out
    assert json.loads(Path("broken/gate.json").read_text())["violations"][0]["metric"] == "raised"


@pytest.mark.parametrize("kind", [pytest.param(ValueError, marks=pytest.mark.slow), InputError])
def test_an_exception_in_the_run_is_a_verdict(gate, monkeypatch, kind):
    from precision_lab.model.layers import LayerNorm

    def broken(self, x):
        raise kind("no kernel [of this\nshape]")

    monkeypatch.setattr(LayerNorm, "__call__", broken)
    code, out, err = gate("out=broken", run=True)
    assert (code, err) == (1, "")
    assert "gate: FAILED" in out
    record = json.loads(Path("broken/gate.json").read_text())
    (violation,) = record["violations"]
    assert (violation["metric"], violation["variant"], violation["step"]) == ("raised", "reference", 0)
    assert violation["site"] == "transformer_blocks.0", "the innermost module that this gate observes"
    assert f"{kind.__name__}: no kernel [of this" in violation["got"]
    assert "test_gate_command.py:" in violation["got"]
    assert "raise kind" in Path("broken/traceback.txt").read_text()
    assert int(ElementTree.parse("broken/gate.xml").getroot().get("failures")) == 1
    assert "no kernel" in Path("broken/gate.md").read_text()


@pytest.mark.slow
def test_a_block_called_twice_deviates(gate, monkeypatch):
    plain = TransformerBlock.__call__
    monkeypatch.setattr(TransformerBlock, "__call__", lambda self, x, *args: plain(self, plain(self, x, *args), *args))
    code, _, err = gate("out=broken", run=True)
    assert (code, err) == (1, "")
    assert json.loads(Path("broken/gate.json").read_text())["violations"][0]["site"] == "transformer_blocks.0"


def test_a_module_called_twice_is_named(gate, monkeypatch):
    plain = Transformer.__call__
    monkeypatch.setattr(Transformer, "__call__", lambda self, *args: plain(self, *args) + plain(self, *args))
    code, _, err = gate("out=broken", run=True)
    assert (code, err) == (1, "")
    (violation,) = json.loads(Path("broken/gate.json").read_text())["violations"]
    assert (violation["site"], violation["step"], violation["branch"]) == ("norm_out", 0, "cond")
    assert "called twice" in violation["got"]
    code, _, err = gate("out=learned_again", "gate.update=true", run=True)
    assert code == 2, "nothing is learned from it"
    assert "called twice" in err


def test_an_exception_under_other_settings_is_no_verdict(gate, monkeypatch):
    from precision_lab.model.layers import LayerNorm

    monkeypatch.setattr(LayerNorm, "__call__", lambda self, x: x @ x)
    code, _, err = gate("sampler.guidance_scale=2", "out=other", run=True)
    assert code == 2
    assert "case.guidance_scale is 2" in err
    assert not Path("other/gate.json").exists()


def test_a_gate_without_pinned_cases_is_refused_before_it_runs(gate):
    code, _, err = gate("pinned.record=false", "out=vain", run=True)
    assert code == 2
    assert "compares pinned cases" in err
    assert not Path("vain").exists()


@pytest.mark.slow
def test_a_run_without_pinned_cases_says_how_to_record_them(gate, small_checkpoint):
    """`run` records them only on request; a baseline that has them neither judges such a run nor learns from it."""
    given = (*SMALL, f"model.path={small_checkpoint}")
    assert main([*given, "out=plain"]) == 0
    assert not Path("plain/sketches.parquet").exists()
    assert json.loads(Path("plain/manifest.json").read_text())["pinned"] is None
    for command in (("run=plain",), ("run=plain", "gate.update=true")):
        code, _, err = gate(*command)
        assert code == 2
        assert "Run it again with pinned.record=true" in err
    assert main([*given, "pinned.record=true", "out=recorded"]) == 0
    code, out, _ = gate("run=recorded", "gate.history=null")
    assert code == 0
    assert "sketches" in out


@pytest.mark.parametrize(
    ("arguments", "run", "said"),
    thinned(
        [
            (("experiment=smal", "out=x"), True, "Did you mean small?"),
            (("gate.baseline=nowhere.json", "out=x"), True, "There is no baseline nowhere.json"),
            (("gate.margin_bits=-1",), True, "gate.margin_bits is -1"),
            (("gate.update=maybe",), True, "gate.update is 'maybe', expected true or false"),
            (("gate.history=yes",), True, "gate.history is 'yes'"),
            (("run=nowhere",), False, "is not the folder of a run"),
            (("run=3",), False, "run is 3"),
            (("+exp=gat",), False, "Did you mean gate"),
            (("run=passed", "gate.margin_bit=1"), False, "Unknown setting"),
        ],
        keep=4,
    ),
)
def test_mistakes_leave_nothing(gate, tmp_path, arguments, run, said):
    before = sorted((tmp_path / "work").rglob("*"))
    code, out, err = gate(*arguments, run=run)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) <= 2
    assert out == ""
    assert sorted((tmp_path / "work").rglob("*")) == before


@pytest.mark.slow
def test_other_settings_are_refused_after_the_run(gate):
    code, _, err = gate("sampler.guidance_scale=2", "out=other", run=True)
    assert code == 2
    assert "case.guidance_scale is 2" in err


def test_an_update_says_what_changed(gate):
    code, out, err = gate("run=passed", "gate.update=true")
    assert (code, err) == (0, "")
    assert "changed against the entry of" in out
    assert "baseline: results/baselines/cpu/small.json" in out


def test_an_interrupted_run_is_refused(gate, tmp_path):
    path = tmp_path / "work/passed/manifest.json"
    path.write_text(path.read_text().replace('"complete"', '"interrupted"'))
    for arguments in ((), ("gate.update=true",)):
        code, _, err = gate("run=passed", *arguments)
        assert code == 2
        assert "is interrupted" in err


def test_without_an_experiment_it_is_the_gates_own(gate):
    code, out, _ = gate("--cfg", "job")
    assert code == 0
    assert "experiment: gate" in out
