"""One run folder, one run: a second is refused, children end with their parent, and a killed run is continued."""

import os
import socket
import subprocess
import sys
import time

import pytest

from precision_lab import report
from precision_lab.cli import main
from precision_lab.model.weights import read_json
from precision_lab.record.tables import read

# computes without end until the file `go` exists
THEIRS = """
import dataclasses, os
from pathlib import Path
from precision_lab.instrument.sites import Wrapper

@dataclasses.dataclass(frozen=True)
class Busy:
    folder: str
    sites: tuple = ("proj_out",)
    preserves_function: bool = True
    composes: bool = True
    def rewrite(self, site):
        folder = Path(self.folder)
        class Called(Wrapper):
            def __call__(self, x):
                (folder / f"pid_{os.getpid()}").touch()
                while not (folder / "go").exists():
                    sum(range(100_000))
                return self.inner(x)
        return Called(site.module)
"""
EXPERIMENT = """# @package _global_
experiment: theirs
variants:
  busy:
    process: {{tf32: {tf32}}}
    technique:
      busy: {{_target_: one_writer_busy.Busy, folder: {folder}}}
"""


@pytest.fixture
def lab(small_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one_writer_busy.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "conf" / "exp").mkdir(parents=True)
    monkeypatch.setattr(report, "write", lambda run, beside=None: run.path / "report.html")
    arguments = [
        *(
            "--config-dir",
            str(tmp_path / "conf"),
            "+exp=theirs",
            f"model.path={small_checkpoint}",
            f"out={tmp_path}/run",
        ),
        *("sampler.steps=1", "image.height=32", "image.width=48", "prompts=[a red circle]", "seeds=[0]", "probe=[]"),
        *("latency.min_rounds=0", "latency.max_rounds=0", "pinned.cases=null", "only=[busy]"),
    ]

    def start():
        paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        return subprocess.Popen(
            [sys.executable, "-m", "precision_lab", *arguments, *more],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.DEVNULL,
        )

    def call(*args):
        code = main([*arguments, *more, *args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    more: list[str] = []
    return start, call, more


def wait_for(what, seconds):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def is_running(pid):
    """Whether a process goes on; one that has ended may stay in the table until somebody asks for its exit code."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


@pytest.mark.parametrize("kind", ["process", pytest.param("crew", marks=pytest.mark.slow)])
def test_a_killed_run_takes_its_children_along_and_can_be_continued(lab, tmp_path, kind):
    start, call, more = lab
    (tmp_path / "conf" / "exp" / "theirs.yaml").write_text(
        EXPERIMENT.format(tf32=str(kind == "process").lower(), folder=tmp_path)
    )
    if kind == "crew":
        more += ["workers=3", "seeds=[0,1,2]"]  # helpers take what the first process is too busy for
    running = start()

    def children():
        return {int(file.name.removeprefix("pid_")) for file in tmp_path.glob("pid_*")} - {running.pid}

    wait_for(children, 60)
    run = tmp_path / "run"
    for args in ((), ("resume=true",)):
        code, _, err = call(*args)
        assert code == 2
        assert f"{run} is being written by process {running.pid} on {socket.gethostname()}" in err
        assert len(err.strip().splitlines()) == 1
    assert read_json(run / "manifest.json")["status"] == "running"

    alive = children()
    running.kill()
    wait_for(lambda: not any(map(is_running, alive)), 1.0)
    running.wait()
    (tmp_path / "go").touch()
    code, _, err = call("resume=true")
    assert code == 0, err
    assert read_json(run / "manifest.json")["status"] == "complete"
    assert set(read(run, "drift")["variant"]) == {"busy"}
    assert not [file for file in run.rglob("*") if file.name == ".lock" or file.suffix == ".tmp"]
