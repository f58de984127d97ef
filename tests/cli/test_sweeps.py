"""Sweeps (`--multirun`): what they leave, how jobs fail, and the launchers of the extras."""

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import pytest
import yaml

from precision_lab.cli import main
from precision_lab.cli.composing import described_failure
from precision_lab.record import sweep as record
from precision_lab.record.manifest import Manifest
from tests.undrawn import undrawn, unrendered

QUICK = (
    *("sampler.steps=1", "image.height=32", "image.width=32", "prompts=[a]", "seeds=[0]", "probe=[]", "workers=1"),
    *("latency.min_rounds=0", "latency.max_rounds=0", "drift.sites=[pipeline:euler_step]"),
)
TIMED = ("latency.min_rounds=2", "latency.max_rounds=2")
BREAKING = """
import os

class Breaking:
    sites, preserves_function, composes = ("norm_out",), True, False

    def __init__(self, how):
        self.how = how

    def rewrite(self, site):
        if self.how == "exit":
            os._exit(9)
        if self.how == "interrupt":
            raise KeyboardInterrupt
        return site.module
"""


def empty_page(run, beside=None):
    page = run.path / "report.html"
    page.touch()
    return page


@pytest.fixture(scope="module")
def swept(small_checkpoint, tmp_path_factory) -> Path:
    """The folder of a sweep of three jobs, the second of which is refused; copy it before changing it."""
    folder = tmp_path_factory.mktemp("sweeps") / "swept"
    settings = (*QUICK, *TIMED, f"model.path={small_checkpoint}", f"hydra.sweep.dir={folder}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("precision_lab.report.write", empty_page)  # of the jobs; the page of the sweep is drawn
        assert main(["-m", "dtype=bfloat16,bf17,float16", *settings]) == 2
    return folder


@pytest.fixture
def copied(swept, tmp_path) -> Path:
    return Path(shutil.copytree(swept, tmp_path / "swept"))


@pytest.fixture
def call(small_checkpoint, tmp_path, monkeypatch, capsys):
    """Runs a sweep in an empty folder, which holds the module `breaking`; returns (exit code, stdout, stderr)."""
    (tmp_path / "breaking.py").write_text(BREAKING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # of workers
    monkeypatch.delitem(sys.modules, "breaking", raising=False)

    def run(*args):
        code = main(["-m", *QUICK, f"model.path={small_checkpoint}", *args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    monkeypatch.setattr("precision_lab.report.write", empty_page)  # of the jobs in this process; launchers' draw
    with unrendered():
        yield run


def breaking(*ways: str) -> str:
    return "+technique.breaking=" + ",".join(f"{{_target_: breaking.Breaking, how: {way}}}" for way in ways)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_sweep_leaves_a_table_a_page_and_the_reason_of_a_refused_job(swept):
    assert {path.name for path in swept.iterdir()} == {
        *("0", "1", "2", "multirun.yaml", "sweep.csv", "index.html", "figures")
    }
    assert {path.name for path in (swept / "1").iterdir()} == {"error.json"}
    page = (swept / "index.html").read_text()
    links = re.findall(r'<a href="([^"]+)">', page)
    assert links == ["0/report.html", "2/report.html"]
    assert all((swept / link).is_file() for link in links)
    assert "exit code 2: dtype is &#39;bf17&#39;" in page
    for job in "02":
        entry = json.loads((swept / job / "summary.json").read_text())["variants"]["baseline"]
        assert f"{entry['latent_rel_l2']:.3g}" in page
    assert pd.read_csv(swept / "sweep.csv", dtype=str)["run"].tolist() == ["0", "2"]


def test_the_index_of_an_existing_sweep_is_the_same(swept, copied, capsys):
    before = files(copied)
    for name in ("index.html", "sweep.csv", "figures/pareto.svg", "figures/pareto.png"):
        (copied / name).unlink()
    assert main(["report", f"sweep={copied}"]) == 0
    out = capsys.readouterr().out
    assert out.rstrip().endswith("index.html")
    assert "job 1: exit code 2: dtype is 'bf17'" in out
    assert files(copied) == before


def test_jobs_that_never_began_are_listed(copied, capsys):
    shutil.rmtree(copied / "2")
    assert main(["report", f"sweep={copied}"]) == 0
    page = (copied / "index.html").read_text()
    assert "2 of 3 jobs have left no complete run: jobs 1, 2" in page
    assert "dtype=float16" in page
    assert "no run yet" in page


def test_folders_of_runs_are_a_sweep_without_its_plan(copied):
    (copied / "multirun.yaml").unlink()
    shutil.rmtree(copied / "1")
    assert main(["report", f"sweep={copied}"]) == 0
    page = (copied / "index.html").read_text()
    assert "dtype=bfloat16" in page
    assert "dtype=float16" in page


@pytest.mark.parametrize(
    ("damaged", "content", "message"),
    [
        ("0/manifest.json", "{", "manifest.json is not strict JSON"),
        ("0/summary.json", "[]", "summary.json"),
        ("2/drift.parquet", "PAR1", "drift.parquet"),
        ("1/error.json", "{}", "error.json has schema_version"),
        ("multirun.yaml", "hydra: [", "multirun.yaml is not the configuration of a sweep"),
        ("multirun.yaml", "- a\n", "multirun.yaml is not the configuration of a sweep"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_written(copied, capsys, damaged, content, message):
    (copied / damaged).write_text(content)
    (copied / "index.html").write_text("the page before")
    before = files(copied)
    assert main(["report", f"sweep={copied}"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert 1 <= len(err.strip().splitlines()) <= 2
    assert files(copied) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "report needs run=DIR"),
        (["sweep=a", "run=b"], "report needs run=DIR"),
        (["sweep=nowhere"], "nowhere is not the folder of a sweep: no such folder"),
        (["sweep=."], "there is no run in a folder below it"),
        (["sweep=a", "out=b"], "report sweep=DIR writes into that folder"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, settings, message):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *settings]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_report_of_a_run_points_at_the_sweep(swept, capsys):
    assert main(["report", f"run={swept}"]) == 2
    assert f"Did you mean sweep={swept}?" in capsys.readouterr().err


def test_the_manifest_of_a_job_has_the_command_of_that_job_alone(call, tmp_path, monkeypatch, small_checkpoint):
    assert call(breaking("no", "interrupt"), "hydra.sweep.dir=swept")[0] == 130
    command = Manifest.read(tmp_path / "swept" / "0").command
    assert "-m" not in command[3:]
    assert command[-1] == "out=swept/0"
    again = shlex.split(shlex.join(command))[3:-1]
    with undrawn():
        assert main([*again, "out=again"]) == 0
    for table in ("drift", "generations"):
        assert (tmp_path / "again" / f"{table}.parquet").read_bytes() == (
            tmp_path / "swept" / "0" / f"{table}.parquet"
        ).read_bytes()


def test_the_command_of_an_interrupted_job_continues_it(call, tmp_path):
    assert call("dtype=float16", "hydra.sweep.dir=swept")[0] == 0
    job = tmp_path / "swept" / "0"
    replace(Manifest.read(job), status="interrupted", finished=None).write(job)
    assert main(["report", "sweep=swept"]) == 0
    page = (tmp_path / "swept" / "index.html").read_text()
    assert re.search(r"interrupted\s*<small[^>]*>this run was not finished", page)
    assert main([*Manifest.read(job).command[3:], "resume=true"]) == 0
    assert main(["report", "sweep=swept"]) == 0
    assert "banner" not in (tmp_path / "swept" / "index.html").read_text().partition("<body>")[2]


def test_an_interrupt_ends_the_sweep_and_leaves_its_index(call, tmp_path):
    code, out, err = call(breaking("no", "interrupt", "no"), "hydra.sweep.dir=swept")
    assert code == 130
    assert err.count("Interrupted") == 1
    assert out.rstrip().endswith("report: swept/index.html")
    assert {path.name for path in (tmp_path / "swept").iterdir()} >= {"0", "index.html"}
    assert not (tmp_path / "swept" / "2").exists()
    assert "2 of 3 jobs have left no complete run: jobs 1, 2" in (tmp_path / "swept" / "index.html").read_text()


@pytest.mark.slow
def test_runs_outside_the_folder_of_the_sweep_are_linked(call, tmp_path):
    assert call("dtype=bfloat16,bf17", "out=run-${hydra:job.num}", "hydra.sweep.dir=swept")[0] == 2
    page = (tmp_path / "swept" / "index.html").read_text()
    assert re.findall(r'<a href="([^"]+)">', page) == ["../run-0/report.html"]
    assert "exit code 2: dtype is &#39;bf17&#39;" in page


@pytest.mark.parametrize(
    ("launcher", "settings"),
    [
        pytest.param("joblib", ("hydra.launcher.n_jobs=2",), marks=pytest.mark.slow),
        pytest.param("submitit_local", ("hydra.launcher.timeout_min=10",), marks=pytest.mark.slow),
    ],
)
def test_a_launcher_gives_the_same_tables_and_messages(call, swept, tmp_path, launcher, settings):
    sweep = ("dtype=bfloat16,bf17,float16", *TIMED, "hydra.sweep.dir=swept")
    code, out, err = call(*sweep, f"hydra/launcher={launcher}", *settings)
    assert code == 2
    assert err.splitlines() == [
        "job 1: dtype is 'bf17', expected one of float32, bfloat16, float16. Did you mean bfloat16?"
    ]
    assert out.rstrip().endswith("report: swept/index.html")
    names = {path.name for path in (tmp_path / "swept").iterdir() if not path.name.startswith(".")}
    assert names == {path.name for path in swept.iterdir()}
    for job in "02":
        for name in ("drift.parquet", "generations.parquet", "config.yaml"):
            assert (tmp_path / "swept" / job / name).read_bytes() == (swept / job / name).read_bytes()
        here, there = (Manifest.read(folder / job).environment for folder in (tmp_path / "swept", swept))
        assert here == there, "the worker is set up as the command line is"


@pytest.mark.slow
def test_a_job_that_was_killed_is_an_error_of_the_sweep(call, tmp_path):
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    code, _, err = call(breaking("no", "no", "exit"), *launcher, "hydra.sweep.dir=swept")
    assert code == 1
    assert err.startswith("hydra_joblib_launcher failed: TerminatedWorkerError")
    assert "`report sweep=swept` lists them" in err
    assert len(err.splitlines()) == 1
    page = (tmp_path / "swept" / "index.html").read_text()
    assert re.search("job.? .*2</p>", page), "the last job has left no run"
    assert 'report.html">' in page


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("hydra/launcher=jobli",), "Unknown hydra/launcher 'jobli'. Did you mean joblib"),
        (("hydra/launcher=joblib", "hydra.launcher.n_job=2"), "Unknown setting 'hydra.launcher.n_job'. --cfg hydra"),
        (("hydra/launcher=joblib", "hydra.launcher.n_jobs=0"), "hydra_joblib_launcher failed: ValueError: n_jobs == 0"),
    ],
)
def test_a_mistake_about_the_launcher_leaves_nothing(call, tmp_path, settings, message):
    before = set(tmp_path.iterdir())
    code, _, err = call("seeds=[0],[1]", *settings, "hydra.sweep.dir=swept")
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert {path for path in tmp_path.iterdir() if path.name != "__pycache__"} == before


def test_a_launcher_that_is_not_installed_is_named_with_its_extra():
    from hydra.errors import MissingConfigException

    for name, extra in (("joblib", "sweep-joblib"), ("submitit_slurm", "sweep-submitit"), ("ray", "sweep-ray")):
        error = MissingConfigException("absent", f"hydra/launcher/{name}", ["basic"])
        assert f"precision-lab[{extra}]" in described_failure(error)
    assert "Available: basic" in described_failure(MissingConfigException("absent", "hydra/launcher/zzz", ["basic"]))


def test_the_plan_of_another_sweeper_is_not_read(copied):
    from precision_lab.cli.sweep_index import planned

    assert list(planned(copied)) == ["0", "1", "2"]
    plan = yaml.safe_load((copied / "multirun.yaml").read_text())
    plan["hydra"]["sweeper"]["_target_"] = "another.Sweeper"
    (copied / record.PLAN).write_text(yaml.safe_dump(plan))
    assert planned(copied) == {}
    plan["hydra"]["sweeper"]["_target_"] = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
    plan["hydra"]["overrides"]["task"] = ["model=glob(*)"]
    (copied / record.PLAN).write_text(yaml.safe_dump(plan))
    assert planned(copied) == {}


def test_the_launchers_of_the_extras_are_those_that_were_tried():
    for name in ("hydra-joblib-launcher", "hydra-submitit-launcher"):
        try:
            assert version(name).startswith("1.2.")
        except PackageNotFoundError:
            pytest.fail(f"{name} is missing: pip install '.[test]'")
