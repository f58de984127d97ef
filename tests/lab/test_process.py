"""Variants in child processes: the same tables as in one process, and the same handling of errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from precision_lab import report
from precision_lab.cli import main
from precision_lab.model.weights import read_json
from precision_lab.record.tables import read

# actions of a variant's module that reveal or break the process in which it is called
THEIRS = """
import dataclasses, os, signal
from pathlib import Path
from precision_lab.errors import InputError
from precision_lab.instrument.sites import Wrapper

@dataclasses.dataclass(frozen=True)
class Witness:
    file: str
    then: str = "go on"
    sites: tuple = ("proj_out",)
    preserves_function: bool = True
    composes: bool = True
    def rewrite(self, site):
        witness = self
        class Called(Wrapper):
            def __call__(self, x):
                Path(witness.file + ".new").write_text(f"{os.getpid()} {os.environ['MLX_ENABLE_TF32']}")
                os.replace(witness.file + ".new", witness.file)
                print("printed in the middle of a reply")
                if witness.then == "raise":
                    raise ValueError("planted")
                if witness.then == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                if witness.then == "refuse":
                    raise InputError("witness.then is refused")
                if witness.then == "fill the disk":
                    raise OSError(28, "No space left on device", "part-x.parquet")
                return self.inner(x)
        return Called(site.module)
"""
VARIANT = """
  {name}:
    process: {{tf32: true}}
    technique:
      witness: {{_target_: process_witness.Witness, file: {file}, then: {then}}}
"""
ONE = {"tf32": "go on"}


@pytest.fixture
def lab(small_checkpoint, tmp_path, monkeypatch, capsys):
    """Runs an experiment with variants in another process; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "process_witness.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "conf" / "exp").mkdir(parents=True)
    # drawing takes longer than the runs
    monkeypatch.setattr(report, "write", lambda run, beside=None: run.path / "report.html")

    def call(*args, variants=ONE, rounds=0):
        code = main([*arguments(tmp_path, small_checkpoint, variants, rounds), *args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def arguments(folder, checkpoint, variants=ONE, rounds=0):
    described = [VARIANT.format(name=name, file=folder / "witness", then=then) for name, then in variants.items()]
    text = f"# @package _global_\nexperiment: theirs\ndtype: float32\nvariants:{''.join(described)}"
    (folder / "conf" / "exp" / "theirs.yaml").write_text(text)
    return (
        *("--config-dir", str(folder / "conf"), "+exp=theirs", f"model.path={checkpoint}", f"out={folder}/run"),
        *("sampler.steps=2", "image.height=32", "image.width=48", "prompts=[a red circle]", "seeds=[0]"),
        *(f"latency.min_rounds={rounds}", f"latency.max_rounds={rounds}", "latency.warmup_rounds=0"),
    )


def of(table, variant):
    """The rows of a variant, without its name."""
    return table[table["variant"] == variant].drop(columns="variant").reset_index(drop=True)


def test_another_process_computes_the_same_on_a_cpu_and_leaves_the_same_records(lab, tmp_path):
    code, out, err = lab("drift.teacher.mode=sampled", rounds=2)
    assert code == 0, err
    pid, tf32 = (tmp_path / "witness").read_text().split()
    assert int(pid) != os.getpid()
    assert (tf32, os.environ["MLX_ENABLE_TF32"]) == ("1", "0")
    assert out.count("tf32: TF32 changes nothing on a CPU") == 1
    assert out.count("tf32: no local error is measured") == 1

    run = tmp_path / "run"
    activations, drift, latency = (read(run, table) for table in ("activations", "drift", "latency"))
    assert len(of(activations, "tf32")) > 0
    pd.testing.assert_frame_equal(of(activations, "tf32"), of(activations, "baseline"), check_exact=True)
    assert of(drift, "tf32")["rel_l2"].eq(0).all()
    assert set(of(drift, "tf32")["mode"]) == {"free"}
    assert set(of(drift, "baseline")["mode"]) == {"free", "teacher"}
    ours, theirs = (run / "images" / f"{name}__p0__s0.png" for name in ("baseline", "tf32"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert latency.groupby("round")["variant"].apply(sorted).tolist() == [["baseline", "tf32"]] * 2
    manifest = read_json(run / "manifest.json")
    assert manifest["environment"]["switches"] == {"MLX_ENABLE_TF32": "0"}
    recorded = {name: (v["process"]["tf32"], v["switches"]) for name, v in manifest["variants"].items()}
    assert recorded["tf32"] == (True, {"MLX_ENABLE_TF32": "1"})
    assert {name for name, (on, _) in recorded.items() if on} == {"tf32"}


@pytest.mark.slow
def test_variants_that_fail_there_are_noted_and_the_others_go_on(lab, tmp_path):
    code, out, _ = lab(variants={"raises": "raise", "dies": "die", "tf32": "go on"})
    assert code == 1
    expected = {"raises": "ValueError: planted (", "dies": "its process ended 2 times: a crash, or too little memory"}
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert (manifest["status"], manifest["errors"].keys()) == ("complete", expected.keys())
    for name, said in expected.items():
        assert f"{name} failed: {said}" in out
        assert manifest["errors"][name].startswith(said)
    assert "planted" in (tmp_path / "run" / "errors" / "raises.txt").read_text()
    assert set(read(tmp_path / "run", "activations")["variant"]) == {"reference", "baseline", "tf32"}


def test_a_full_disk_there_is_one_line(lab, tmp_path):
    code, _, err = lab(variants={"tf32": "fill the disk"})
    assert code == 2
    assert err.startswith("No space left on the disk (part-x.parquet)")
    assert read_json(tmp_path / "run" / "manifest.json")["status"] == "failed"


def test_a_mistake_of_the_user_that_shows_only_there_is_one_line(lab):
    code, _, err = lab(variants={"tf32": "refuse"})
    assert (code, err.strip()) == (2, "witness.then is refused")


@pytest.mark.slow
def test_interrupted_in_the_middle_it_ends_and_is_continued(lab, small_checkpoint, tmp_path):
    """Sends SIGTERM only to the parent, while the child is computing."""
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-m", "precision_lab", *arguments(tmp_path, small_checkpoint)]
    running = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.DEVNULL
    )
    witness = tmp_path / "witness"
    deadline = time.monotonic() + 60
    while not witness.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    child = int(witness.read_text().split()[0])
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=60) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    run = tmp_path / "run"
    assert json.loads((run / "manifest.json").read_text())["status"] == "interrupted"
    assert set(read(run, "activations")["variant"]) == {"reference", "baseline"}, "nothing half-written"

    code, _, err = lab("resume=true")
    assert code == 0, err
    assert len(of(read(run, "activations"), "tf32")) == len(of(read(run, "activations"), "baseline"))
    assert not any(Path(run).glob("**/*.tmp"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("++variants.tf32.process.tf23=true", "Unknown setting 'variants.tf32.process.tf23'. Did you mean tf32"),
        ("variants.tf32.process.tf32=1", "process.tf32 is 1, expected true or false"),
        (
            "variants.tf32.process=fast",
            "variants.tf32.process is 'fast', expected settings below it, like variants.tf32.process.NAME=VALUE",
        ),
    ],
)
def test_mistakes(lab, tmp_path, setting, said):
    code, _, err = lab(setting)
    assert code == 2
    assert said in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_text_that_looks_like_an_interpolation_reaches_it_as_it_is(lab, tmp_path):
    settings = (r"prompts=['a \${red} circle', 'costs \\\${5}']", r"sampler.negative_prompt='no \${blue}'")
    code, _, err = lab(*settings, variants={"raises": "raise", "tf32": "go on"})
    assert code == 1, err
    run = tmp_path / "run"
    manifest = read_json(run / "manifest.json")
    assert manifest["prompts"] == ["a ${red} circle", "costs \\${5}"]
    assert manifest["case"]["negative_prompt"] == "no ${blue}"
    assert manifest["errors"]["raises"].startswith("ValueError: planted")
    activations = read(run, "activations")
    pd.testing.assert_frame_equal(of(activations, "tf32"), of(activations, "baseline"), check_exact=True)

    manifest["status"] = "interrupted"
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert "resume=true: the run" not in lab(*settings, "resume=true", variants={"raises": "go on", "tf32": "go on"})[2]
