"""`submit`: a bundle of two child runs in which no file names the user, the host or a personal path."""

import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from precision_lab.cli import main, submit
from precision_lab.record.anonymous import Person
from precision_lab.record.device import DeviceRecord
from precision_lab.record.run import Run
from precision_lab.record.tables import LEADING, empty
from tests import fabricated

CPU = Path(__file__).parents[2] / "results" / "reference" / "cpu" / "device" / "device.json"
HOME = "/Users/jane q"
PERSON = Person(HOME, {"jane q": "USER", "janes-mac.local": "HOST", "janes-mac": "HOST"})
PLANTED = [
    f"out={HOME}/runs/mine",
    "model.path=/Volumes/work/jane/weights",
    "tcp://janes-mac.local:8786",
    "by jane q on janes-mac",
]
SECRETS = ("jane", "janes-mac", "/Users", "/Volumes", "/home/")


def fake(folder, planted=PLANTED):
    """Leaves what the child `device` or `run` leaves, with planted names."""
    if folder.name == "device":
        record = json.loads(CPU.read_text())
        record["command"], record["environment"]["blas"] = planted, f"OpenBLAS ({HOME}/lib/blas.so)"
        folder.mkdir(parents=True)
        (folder / "device.json").write_text(json.dumps(record))
        return
    (folder / "images").mkdir(parents=True)
    fabricated.manifest(command=planted, notes=planted).write(folder)
    for name in LEADING:
        empty(name).to_parquet(folder / f"{name}.parquet")
    for variant in ("reference", "baseline"):
        Image.new("RGB", (8, 8)).save(folder / "images" / f"{variant}__p0__s0.png")
    (folder / "config.yaml").write_text(f"out: {HOME}/run\nmodel: {{path: /Volumes/work/jane/weights}}\n")


@pytest.fixture
def children(monkeypatch):
    """The exit codes of the child commands, which are not run, and what they were given."""
    codes, seen = {"device": 0, "run": 0}, []

    real = subprocess.run

    def run(words, **options):
        if words[1:3] != ["-m", "precision_lab"]:
            return real(words, **options)
        (command, *rest), out = words[3:], Path(words[-1].removeprefix("out='").removesuffix("'"))
        seen.append([command, *rest])
        if codes[command] in (0, 1):
            fake(out)
        return subprocess.CompletedProcess(words, codes[command])

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(Person, "here", classmethod(lambda cls: PERSON))
    return codes, seen


def test_no_text_of_a_bundle_names_anybody(children, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(submit, "LARGEST", 40_000_000)
    out = tmp_path / "mine"
    assert main(["submit", f"out={out}"]) == 0
    assert re.search(r"bundle: .*bundle\.zip, \d+\.\d MB", capsys.readouterr().out.replace("\n", ""))
    assert [words[0] for words in children[1]] == ["device", "run"]
    assert "+exp=findings" in children[1][1]
    folder = out / "bundle"
    texts = [path for path in folder.rglob("*") if path.suffix in (".json", ".yaml", ".md", ".html", ".svg")]
    assert {path.name for path in texts} >= {
        "device.json",
        "manifest.json",
        "README.md",
        "report.html",
        "versions.json",
    }
    for path in texts:
        text = path.read_text().lower()
        assert not [secret for secret in (*SECRETS, str(tmp_path)) if secret.lower() in text], path
    assert "blas.so" in (folder / "device.json").read_text()
    assert "<pre>" in (folder / "run" / "report.html").read_text()
    DeviceRecord.read(folder)
    Run.open(folder / "run").whole()
    with zipfile.ZipFile(out / "bundle.zip") as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"bundle"}


def test_tables_are_left_out_of_a_bundle_that_is_too_large(children, tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "LARGEST", 1000)
    assert main(["submit", f"out={tmp_path / 'mine'}"]) == 0
    assert not list((tmp_path / "mine" / "bundle").rglob("*.parquet"))
    assert "tables (.parquet)" not in (tmp_path / "mine" / "bundle" / "README.md").read_text()


def test_the_exit_code_is_that_of_the_run(children, tmp_path):
    children[0]["run"] = 1
    assert main(["submit", f"out={tmp_path / 'mine'}"]) == 1
    assert (tmp_path / "mine" / "bundle.zip").exists()


@pytest.mark.parametrize(("command", "code", "expected"), [("device", 2, 2), ("run", 3, 2), ("run", 130, 130)])
def test_a_child_that_fails(children, command, code, expected, tmp_path, capsys):
    children[0][command] = code
    assert main(["submit", f"out={tmp_path / 'mine'}"]) == expected
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "mine" / "bundle").exists()


def test_usage_errors(children, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out, said in ((tmp_path, "new or an empty folder"), (tmp_path / "file", "new or an empty"), ("''", "a folder")):
        assert main(["submit", f"out={out}"]) == 2
        assert said in capsys.readouterr().err
    assert not children[1]


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
def test_a_real_bundle(tmp_path):
    out = tmp_path / "mine"
    assert main(["submit", f"out={out}"]) == 0
    assert (out / "bundle.zip").stat().st_size < submit.LARGEST
    for path in (out / "bundle").rglob("*.json"):
        assert str(tmp_path) not in path.read_text()
    shutil.rmtree(out)
