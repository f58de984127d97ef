"""The examples of the guide work as they are printed."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

import precision_lab
from experiments.guide import make_reference
from precision_lab.cli import main
from precision_lab.instrument.sites import walk
from precision_lab.lab import queues
from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.model.rotary import Grid
from precision_lab.probes.base import Declaring, Probe
from precision_lab.record.run import Run
from precision_lab.techniques.base import Technique, applied
from tests.undrawn import undrawn, unrendered

GUIDE = Path(__file__).parents[1] / "experiments" / "guide"
CONFIG = TransformerConfig(
    num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8, axes_dims_rope=(4, 2, 2)
)


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", (GUIDE / page).read_text(), flags=re.DOTALL)


def test_the_technique_and_the_probe():
    (technique,), (probe, _) = python_blocks("own_technique.md"), python_blocks("own_probe.md")
    names = {"mx": mx}
    exec(technique, names)
    clip = names["BlockEndClip"]()
    exec(probe, names := {})
    kurtosis = names["Kurtosis"](("transformer_blocks.*",))
    assert isinstance(clip, Technique)
    assert isinstance(kurtosis, Probe)
    assert isinstance(kurtosis, Declaring)
    model = Transformer(CONFIG)
    with applied({"transformer": model}, {"clip": clip}) as coverage:
        out = model(mx.ones((1, 4, 64)) * 1e6, mx.array([0.5]), mx.ones((1, 3, 8)), Grid(2, 2))
        assert mx.isfinite(out).all()
    assert coverage["clip"].matched == 2
    assert kurtosis.measure(mx.random.normal((200, 200)))["kurtosis"].item() == pytest.approx(3, rel=0.05)


@unrendered()
def test_the_yaml_of_the_probe(small_checkpoint, tmp_path, monkeypatch):
    (yaml,) = yaml_blocks("own_probe.md")
    (tmp_path / "kurtosis.py").write_text(python_blocks("own_probe.md")[0])
    (tmp_path / "conf" / "probe").mkdir(parents=True)
    (tmp_path / "conf" / "probe" / "kurtosis.yaml").write_text(yaml)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "kurtosis", raising=False)
    (command,) = re.findall(r"python -m (precision_lab .*kurtosis.*)", (GUIDE / "own_probe.md").read_text())
    quick = ("sampler.steps=1", "image.height=32", "image.width=32", "prompts=[a]", "latency.max_rounds=0", "out=run")
    words = [word for word in shlex.split(command)[1:] if not word.startswith("out=")]
    assert main([*words, f"model.path={small_checkpoint}", *quick]) == 0
    table = Run.open(tmp_path / "run").activations
    blocks = table[table["site"].str.fullmatch(r"transformer_blocks\.\d+")]
    assert len(blocks) > 0
    assert blocks["kurtosis"].notna().all()
    assert "fourth standardised moment" in (tmp_path / "run" / "report.html").read_text()


def test_the_names_of_the_page_on_addresses():
    paths = {site.path for site in walk({"transformer": Transformer(CONFIG)})}
    block = {path.removeprefix("transformer_blocks.0.") for path in paths}
    page = (GUIDE / "addresses.md").read_text()
    inside = re.findall(r"`([\w.]+)`", page.partition("Inside a block:")[2].partition("Around the")[0])
    for name in inside:
        if name not in ("txt_", "attn"):
            assert {name, f"attn.{name}", f"img_mlp.{name}"} & block, name
    around = page.partition("Around the\nblocks:")[2].partition("In `pipeline`")[0]
    assert set(re.findall(r"`(\w+)`", around)) <= paths


def yaml_blocks(page):
    return re.findall(r"```yaml\n(.*?)```", (GUIDE / page).read_text(), flags=re.DOTALL)


@pytest.fixture
def chatter(tmp_path, monkeypatch):
    """The folder of somebody who followed the page on own models."""
    (subject, technique), (of_subject, of_technique) = python_blocks("own_model.md"), yaml_blocks("own_model.md")
    assert len(subject.splitlines()) <= 120
    assert len(technique.splitlines()) <= 40
    assert len(of_technique.splitlines()) <= 4
    for group, name, code, settings in (
        ("model", "chatter", subject, of_subject),
        ("technique", "softcap", technique, of_technique),
    ):
        (tmp_path / f"{name}.py").write_text(code)
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / f"{name}.yaml").write_text(settings)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("chatter", "softcap"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands_on_own_models():
    page = (GUIDE / "own_model.md").read_text()
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL))
    commands = [shlex.split(line)[3:] for line in shell.splitlines() if line.startswith("python")]
    assert [command[0] for command in commands] == ["--config-dir", "--config-dir", "gate", "prove"]
    return commands


@pytest.mark.slow
@unrendered()
def test_the_commands_of_the_page_on_own_models(chatter):
    run, capped, *_ = commands_on_own_models()
    timing = ["latency.min_rounds=2", "latency.max_rounds=2"]
    assert main([*run, *timing, "out=run"]) == 0
    found = Run.open(chatter / "run")
    assert set(found.drift["mode"]) == {"free", "teacher"}
    assert found.manifest.sites["custom"]["fp32_norms"].matched == 4
    assert found.summary.variants["custom"].metrics["kl"].value > 0
    assert "residual stream" in (chatter / "run" / "report.html").read_text().lower()
    with undrawn():
        assert main([*capped, *timing, "out=capped"]) == 0
        assert Run.open(chatter / "capped").manifest.sites["custom"]["softcap"].matched == 1


@pytest.mark.slow
def test_the_gate_and_the_proof_of_the_page_on_own_models(chatter, capsys):
    """That a model from outside is gated and compared is tested by default in tests/foreign."""
    run, _, gate, prove = commands_on_own_models()
    timing = ["latency.min_rounds=3", "latency.max_rounds=3"]
    with undrawn():
        assert main([*run, *timing, "out=run"]) == 0
        timing += ["gate.latency_margin=1000", "gate.latency_ratio_margin=1000"]  # not the subject on a busy machine
        assert main([*gate, *timing, "out=learned"]) == 0
        assert main([*[word for word in gate if "update" not in word], *timing, "out=judged"]) == 0
    assert main(["compare", "runs=[run,learned]"]) == 0
    capsys.readouterr()
    assert main(prove) == 0
    assert "fp32_norms" in capsys.readouterr().out


def test_the_page_on_public_names_lists_all_of_them():
    page = (GUIDE / "reference.md").read_text().partition("| name |")[2].partition("Read a run")[0]
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == sorted(set(precision_lab.__all__) - {"__version__"})
    for name in precision_lab.__all__:
        assert getattr(precision_lab, name) is not None


def test_the_reference_has_the_docstrings_of_the_public_names():
    written = make_reference.PAGE.read_text().partition(make_reference.MARK)[2]
    assert written.strip() == make_reference.text().strip(), "python -m experiments.guide.make_reference writes it"


@pytest.mark.slow
def test_the_commands_of_the_section_on_sweeps(small_checkpoint, tmp_path, monkeypatch, capsys):
    section = (GUIDE / "experiments.md").read_text().partition("## Sweeps")[2].partition("\n## ")[0]
    (shell,) = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    commands = [shlex.split(line, comments=True)[3:] for line in shell.splitlines()]
    sweep, report, joblib, slurm = commands
    quick = ("sampler.steps=1", "image.height=32", "image.width=32", "prompts=[a]", "latency.max_rounds=0", "probe=[]")
    quick += (f"model.path={small_checkpoint}", "drift.sites=[pipeline:euler_step]")
    monkeypatch.chdir(tmp_path)
    assert main([*sweep, *quick, "hydra.sweep.dir=DIR"]) == 0
    (tmp_path / "DIR" / "index.html").unlink()
    assert main(report) == 0
    assert (tmp_path / "DIR" / "index.html").read_text().count('report.html">') == 4
    assert main([*joblib, *quick, "hydra.sweep.dir=parallel"]) == 0
    assert (tmp_path / "parallel" / "index.html").is_file()
    assert main([*(word for word in slurm if word.startswith("hydra")), "--cfg", "hydra"]) == 0
    assert "partition: gpu" in capsys.readouterr().out


QUICK = ("sampler.steps=1", "image.height=32", "image.width=32", "prompts=[a,b]", "latency.max_rounds=0")


def shell_of(page, section):
    """The commands of a section, in order."""
    text = (GUIDE / page).read_text().partition(f"## {section}")[2].partition("\n## ")[0]
    return [
        shlex.split(line) for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
    ]


@pytest.fixture
def small(small_checkpoint, tmp_path, monkeypatch):
    """Runs the words of a command of the page on machines on a small model; returns the run's manifest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("precision_lab.report.write", lambda run, beside=None: run.path / "report.html")

    def call(words, *changes):
        given = dict(word.split("=", 1) for word in (*words[3:], *QUICK, f"model.path={small_checkpoint}", *changes))
        given |= {"seeds": "[0]", "out": "run"}
        assert words[:3] == ["python", "-m", "precision_lab"]
        assert main([f"{key}={value}" for key, value in given.items()]) == 0
        return Run.open(tmp_path / "run").manifest

    return call


@pytest.mark.slow
def test_the_command_for_several_gpus(small):
    (command,) = shell_of("machines.md", "One host with four GPUs")
    assert {worker.name for worker in small(command).workers} >= {"this machine", "worker 2 of this machine"}


@pytest.mark.slow
def test_the_commands_for_two_macs(small, tmp_path):
    scheduler, worker, far, run = shell_of("machines.md", "Two Macs over SSH")
    assert far[:2] == ["ssh", "other-mac"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    commands = [scheduler, worker, [word.replace("this-mac.local", "127.0.0.1") for word in far[2:]]]
    started = []
    for command in commands:
        assert command[0] == "dask"
        words = [sys.executable, "-m", "dask", *(word.replace("8786", port) for word in command[1:])]
        started.append(subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL))
    try:
        client = wait_for_workers(f"tcp://127.0.0.1:{port}", 2)
        client.close()
        made = small([word.replace("8786", port) for word in run]).workers
        assert len(made) == 2
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


def wait_for_workers(address, count):
    from distributed import Client

    client = Client(address, timeout=30, set_as_default=False)
    client.wait_for_workers(count, timeout=30)
    return client


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # dask-jobqueue leaves pipes open
def test_the_command_for_slurm(small, tmp_path, monkeypatch):
    """With the batch system of dask-jobqueue that runs its jobs on this machine."""
    import dask
    import yaml

    (command,) = shell_of("machines.md", "Slurm")
    (text,) = yaml_blocks("machines.md")
    settings = yaml.safe_load(text)["jobqueue"]["slurm"]
    assert settings["job-extra-directives"] == ["--gres=gpu:1"]
    own = {name: settings[name] for name in ("cores", "processes")} | {"memory": "2GB", "log-directory": str(tmp_path)}
    own["scheduler-options"] = {"dashboard_address": ":0"}  # another may have the default port
    monkeypatch.setitem(queues.QUEUES, "slurm", "dask_jobqueue.local.LocalCluster")
    paths = os.pathsep.join(filter(None, sys.path))
    monkeypatch.setenv("PYTHONPATH", paths)
    with dask.config.set({f"jobqueue.local.{name}": value for name, value in own.items()}):
        made = small(command, "workers=2").workers
    assert all(worker.name.startswith("tcp://") for worker in made)
