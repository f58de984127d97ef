"""A model that the laboratory has never heard of, through everything a run can be used for."""

import itertools
import json
import shutil
from pathlib import Path

import mlx.core as mx
import pandas as pd
import pytest

from precision_lab.cli import main
from precision_lab.lab.subject import Case, Source
from precision_lab.record.run import Run
from precision_lab.record.tables import read
from tests.foreign.denoiser import Source as Denoiser
from tests.foreign.denoiser import Subject as Foreign
from tests.undrawn import undrawn, unrendered

CONF = str(Path(__file__).parent / "conf")
MODEL = ("--config-dir", CONF, "model=denoiser")
QUICK = ("latency.min_rounds=3", "latency.max_rounds=3")


def run(out, *overrides, command=()):
    return main([*command, *MODEL, *QUICK, f"out={out}", *overrides])


@pytest.fixture(scope="module", autouse=True)
def _without_figures():
    """That a page has the same bytes with its figures is tested in tests/report."""
    with unrendered():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("foreign") / "run"
    assert run(out, "+exp=foreign", "seeds=[0,1,2]", "drift.teacher.mode=full") == 0
    return out


def test_it_follows_the_protocol():
    source = Denoiser("denoiser")
    assert isinstance(source, Source)
    subject = source.load(mx.float32)
    state = subject.start(Case(0, "", 1, {"steps": 4, "width": 8}))
    before = mx.array(state.x)
    subject.step(state, 0)
    assert mx.array_equal(state.x, before)


def test_what_a_run_leaves(finished):
    opened = Run.open(finished)
    assert opened.layout == Denoiser("denoiser").layout
    assert opened.manifest.checkpoint.settings == {"depth": 3}
    assert opened.manifest.case == {"steps": 4, "width": 8}
    assert opened.manifest.sites["fp32_stages"]["fp32_stages"].matched == 3
    rows = opened.activations
    assert set(rows["site"]) == {"stages.0", "stages.1", "stages.2", "denoise"}
    assert rows["branch"].isna().all()
    assert set(rows["stream"]) == {"-"}
    assert sorted(rows["block"].dropna().unique()) == [0, 1, 2]
    assert sorted(rows["sigma"].unique()) == [0.25, 0.5, 0.75, 1.0]
    assert set(opened.drift["mode"]) == {"free", "teacher"}
    assert not (finished / "images").exists()


def test_verdicts_and_page(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert {claim["id"]: claim["verdict"] for claim in summary["claims"]}["growth"] == "supported"
    baseline = summary["variants"]["baseline"]
    assert 0 < baseline["latent_rel_l2"] < 0.1
    assert baseline["amax_final"] > 0
    assert (baseline["psnr_db"], baseline["psnr_db_reason"]) == (None, "no picture")
    assert summary["variants"]["exact"]["latent_rel_l2"] == 0
    page = (finished / "report.html").read_text()
    assert "vectors" in page
    for word in ("latents", "guidance", "uncond", "image stream", "transformer_blocks"):
        assert word not in page, word


def test_a_technique_is_applied_and_undone(finished):
    drift = Run.open(finished).drift.query("mode == 'free' and site == 'denoise' and step == 3")
    means = drift.groupby("variant")["rel_l2"].mean()
    assert means["exact"] == 0
    assert 0 < means["fp32_stages"] <= 1.5 * means["baseline"]


def test_the_gate_learns_passes_and_names_a_planted_change(tmp_path, monkeypatch, capsys):
    baseline = f"gate.baseline={tmp_path / 'gate.json'}"
    # times are not the subject of a test on a busy machine
    gate = {"command": ("gate", "gate.latency_margin=1000", "gate.latency_ratio_margin=1000")}
    with undrawn():
        assert run(tmp_path / "learned", "+exp=foreign", baseline, "gate.update=true", **gate) == 0
        assert run(tmp_path / "same", "+exp=foreign", baseline, **gate) == 0
    original = Denoiser.load

    def changed(self, dtype):
        subject = original(self, dtype)
        if not getattr(self, "changed", False):
            for loaded in {id(s): s for s in self._loaded.values()}.values():
                loaded.net.stages[1].weight = 1.05 * loaded.net.stages[1].weight
            self.changed = len(self._loaded) > 1
        return subject

    monkeypatch.setattr(Denoiser, "load", changed)
    capsys.readouterr()
    with undrawn():
        assert run(tmp_path / "changed", "+exp=foreign", baseline, **gate) == 1
    record = json.loads((tmp_path / "changed" / "gate.json").read_text())
    assert record["violations"][0]["address"] == "stages.1"


def test_compare_and_report_again(finished, tmp_path, capsys):
    other = tmp_path / "other"
    with undrawn():
        assert run(other, "+exp=foreign", "seeds=[0,1,2]", "dtype=float16") == 0
    capsys.readouterr()
    assert main(["compare", f"runs=[{finished},{other}]"]) == 0
    assert "baseline" in capsys.readouterr().out
    copied = Path(shutil.copytree(finished, tmp_path / "copied"))
    (copied / "report.html").unlink()
    assert main(["report", f"run={copied}"]) == 0
    assert (copied / "report.html").read_bytes() == (finished / "report.html").read_bytes()


@pytest.mark.slow
def test_interrupted_and_resumed_it_leaves_the_same(finished, tmp_path, monkeypatch):
    out, steps, step = tmp_path / "again", itertools.count(), Foreign.step
    settings = ("+exp=foreign", "seeds=[0,1,2]", "drift.teacher.mode=full", "workers=1")

    def interrupted(self, state, number):
        if next(steps) == 40:
            raise KeyboardInterrupt
        return step(self, state, number)

    with monkeypatch.context() as patch:
        patch.setattr(Foreign, "step", interrupted)
        assert run(out, *settings) == 130
    assert json.loads((out / "manifest.json").read_text())["status"] == "interrupted"
    assert len(read(out, "activations")) > 0, "generations that were complete are kept"
    assert run(out, *settings, "resume=true") == 0
    for table in ("activations", "drift"):
        whole = pd.read_parquet(finished / f"{table}.parquet")
        pd.testing.assert_frame_equal(pd.read_parquet(out / f"{table}.parquet"), whole, check_exact=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampler.width=9", "sampler.width is 9, expected 8"),
        ("+sampler.hieght=3", "Unknown setting 'hieght'"),
        ("+model.detph=3", "Unknown setting 'model.detph'. Did you mean depth"),
        ("drift.sites=[stagse.*]", "matches nothing"),
        ("pinned=null", "pinned is None, expected settings below it"),
        ("probe.range.sites=[vae:conv]", "unknown component 'vae'"),
    ],
)
def test_mistakes_are_named(override, message, tmp_path, capsys):
    assert run(tmp_path / "run", override) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
