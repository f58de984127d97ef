"""`submit`: a bundle of two child runs in which no file names the user, the host or a personal path."""

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from precision_lab.cli import main, submit
from precision_lab.errors import InputError
from precision_lab.record.anonymous import Person
from precision_lab.record.device import DeviceRecord
from precision_lab.record.run import Run
from precision_lab.record.tables import LEADING, empty
from precision_lab.report.figures import style
from tests import fabricated
from tests.undrawn import undrawn

CPU = Path(__file__).parents[2] / "results" / "reference" / "cpu" / "device" / "device.json"
HOME = "/Users/jane q"
PERSON = Person(HOME, {"jane q": "USER", "janes-mac.local": "HOST", "janes-mac": "HOST"})
PLANTED = [
    f"out={HOME}/runs/mine",
    "model.path=/Volumes/disk/jane/weights",
    "tcp://janes-mac.local:8786",
    "by jane q on janes-mac",
]
SECRETS = ("jane", "janes-mac", "/Users", "/Volumes", "/home/")


def fake(folder, planted=PLANTED):
    """Leaves what the command `device` or `run` leaves, with planted names."""
    folder.mkdir(parents=True)
    if folder.name == "device":
        record = json.loads(CPU.read_text())
        record["command"], record["environment"]["blas"] = planted, f"OpenBLAS ({HOME}/lib/blas.so)"
        (folder / "device.json").write_text(json.dumps(record))
        return
    (folder / "images").mkdir()
    fabricated.manifest(command=planted, notes=planted).write(folder)
    for name in LEADING:
        empty(name).to_parquet(folder / f"{name}.parquet")
    for variant in ("reference", "baseline"):
        Image.new("RGB", (8, 8)).save(folder / "images" / f"{variant}__p0__s0.png")
    (folder / "config.yaml").write_text(f"out: {HOME}/run\nmodel: {{path: /Volumes/disk/jane/weights}}\n")


@pytest.fixture
def commands(monkeypatch):
    """How the commands end that are not run: an exit code or an exception. And what they were given."""
    endings, seen = {"device": 0, "run": 0}, []

    def measure(command, arguments, out, shown):
        seen.append([command, *arguments])
        fake(out)
        if isinstance(endings[command], BaseException):
            raise endings[command]
        return endings[command]

    monkeypatch.setattr(submit, "measure", measure)
    monkeypatch.setattr(Person, "here", classmethod(lambda cls: PERSON))
    return endings, seen


@pytest.fixture
def empty_figure(monkeypatch):
    """The figures of device.json are empty ones, as drawing takes seconds."""
    for name in ("device", "device_errors"):

        def draw(record, name=name):
            figure = style.new_figure(1)
            figure.subplots()
            return style.Drawing(name, "", figure, "")

        monkeypatch.setattr(f"precision_lab.report.figures.{name}.draw", draw)


@pytest.fixture
def unchecked(monkeypatch):
    """Overrides of the run are not composed, which takes half a second."""
    monkeypatch.setattr(submit, "_check", lambda overrides: None)


def texts(folder):
    return [path for path in folder.rglob("*") if path.suffix in (".json", ".yaml", ".md", ".html", ".svg")]


def test_no_text_of_a_bundle_names_anybody(commands, empty_figure, tmp_path, capsys):
    out = tmp_path / "mine"
    assert main(["submit", f"out={out}"]) == 0
    assert re.search(r"bundle: .*bundle\.zip, \d+\.\d MB", capsys.readouterr().out)
    assert commands[1] == [["run", "+exp=findings"], ["device"]]
    assert {path.name for path in out.iterdir()} == {"README.md", "bundle.zip", "device", "run", "versions.json"}
    assert {"device.json", "manifest.json", "report.html", "config.yaml"} <= {path.name for path in texts(out)}
    for path in texts(out):
        text = path.read_text().lower()
        assert not [secret for secret in (*SECRETS, str(tmp_path)) if secret.lower() in text], path
    assert "blas.so" in (out / "device" / "device.json").read_text()
    assert "<pre>" in (out / "run" / "report.html").read_text()
    DeviceRecord.read(out / "device")
    assert {path.stem for path in (out / "device").glob("*.svg")} == {"device", "device_errors"}
    Run.open(out / "run").whole()
    with zipfile.ZipFile(out / "bundle.zip") as archive:
        packed = {name.removeprefix("bundle/") for name in archive.namelist()}
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert packed == files - {"bundle.zip"}


def test_tables_are_left_out_of_a_bundle_that_is_too_large(commands, unchecked, empty_figure, tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "LARGEST", 1000)
    with undrawn():
        assert main(["submit", f"out={tmp_path / 'mine'}"]) == 0
    assert not list((tmp_path / "mine").rglob("*.parquet"))
    assert "tables (.parquet)" not in (tmp_path / "mine" / "README.md").read_text()


def test_the_exit_code_is_that_of_the_run(commands, unchecked, empty_figure, tmp_path):
    commands[0]["run"] = 1
    with undrawn():
        assert main(["submit", f"out={tmp_path / 'mine'}"]) == 1
    assert (tmp_path / "mine" / "bundle.zip").exists()


@pytest.mark.parametrize("command", ["device", "run"])
@pytest.mark.parametrize(
    ("ending", "code", "expected"),
    [(InputError("no such model"), 2, "no such model"), (KeyboardInterrupt(), 130, "Nothing was bundled")],
)
def test_nothing_is_left_of_a_command_that_fails(
    commands, unchecked, command, ending, code, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    commands[0][command] = ending
    for given in ([], ["out=new/mine"]):
        assert main(["submit", *given]) == code
        said = capsys.readouterr().err
        assert expected in said
        assert len(said.splitlines()) == 1
        assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_bundle_that_is_interrupted(commands, unchecked, tmp_path, monkeypatch, capsys):
    def interrupted(measured, folder, overrides):
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submit, "bundle", interrupted)
    assert main(["submit", "out=mine"]) == 130
    assert capsys.readouterr().err.splitlines() == ["Interrupted. Nothing was bundled."]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["out=."], "new or an empty folder"),
        (["out=file"], "is a file, expected a folder"),
        (["out=''"], "out is ''"),
        (["out=file/below"], "file/below"),
        ([f"out={'x' * 300}"], "cannot be written"),
        (["overrides=['+exp=findngs']"], "findings"),
        (["overrides=['+exp=findings','seeds=[a]']"], "seeds"),
        (["overrides=['+exp=findings','out=x']"], "out=x"),
        (["overrides=['+exp=findings','dtype=float16,float32']"], "dtype"),
        (["overrides=+exp=findings"], "overrides"),
    ],
    ids=str,
)
def test_a_mistake_is_named_before_anything_is_measured(commands, arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert main(["submit", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not commands[1]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/usr/lib/libblas.so", "libblas.so"),
        ("https://github.com/a/b/pull/1", "https://github.com/a/b/pull/1"),
        ("package://micro", "package://micro"),
        ("results/runs/x", "results/runs/x"),
        ("1/n, and q / k", "1/n, and q / k"),
        (f"{HOME}/a b", "~/a b"),
        ("run='/tmp/x y/z'", "run='x y/z'"),
    ],
)
def test_paths(text, expected):
    assert PERSON.text(text) == expected


def test_a_user_may_have_the_name_of_a_word_of_the_laboratory():
    max_ = Person("/home/max", {"max": "USER", "vm": "HOST"})
    value = {"columns": {"max": [1.5]}, "metric": "max", "command": ["max", "amax", "out=/home/max/a"], "host": "x"}
    expected = {"columns": {"max": [1.5]}, "metric": "max", "command": ["USER", "amax", "out=~/a"], "host": "x"}
    assert max_.scrubbed(value) == expected


@pytest.mark.slow
def test_a_real_bundle(tmp_path, capfd):
    out = tmp_path / "mine"
    small = ["+exp=findings", "sampler.steps=1", "prompts=[a red circle]", "only=[baseline]", "latency.max_rounds=0"]
    assert main(["submit", f"out={out}", f"overrides={small}"]) == 0
    said = capfd.readouterr()
    assert f"report: {out}/run/report.html" in said.out
    assert ".mine." not in said.out + said.err
    assert (out / "bundle.zip").stat().st_size < submit.LARGEST
    for path in out.rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(sent, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "precision_lab", "submit", "out=a/mine"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert "findings" in next(process.stdout)
        process.send_signal(sent)
        assert process.wait(30) == 130
        assert process.stderr.read().splitlines() == ["Interrupted. Nothing was bundled."]
    assert not list(tmp_path.iterdir())
