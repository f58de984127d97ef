"""A system that refuses to write: a line that names the file, nothing half-written, and a run that goes on later."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from precision_lab import report
from precision_lab.cli import main
from precision_lab.lab.reference import writing
from precision_lab.model.weights import read_json
from precision_lab.record import files
from precision_lab.record.files import NotWrittenError
from precision_lab.record.tables import read
from tests.spread import slow

TINY = (
    *("only=[baseline]", "sampler.steps=1", "image.height=32", "image.width=48", "prompts=[a red circle]"),
    *("seeds=[0]", "latency.min_rounds=2", "latency.max_rounds=2", "latency.warmup_rounds=0", "pinned.cases=null"),
    *("probe.range.sites=[norm_out]", "drift.sites=[norm_out,pipeline:euler_step]"),
)


@pytest.fixture
def lab(small_checkpoint, tmp_path, monkeypatch, capsys):
    """Calls the command line in an empty folder without drawing; returns (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "write", lambda run, beside=None: run.path / "report.html")

    def call(*args):
        code = main([*args, *(() if args and args[0] == "report" else (f"model.path={small_checkpoint}", *TINY))])
        return code, capsys.readouterr().err

    return call


class Refusing:
    """Lets `count` files be written, and then none: each write fails after half of the file is on the disk."""

    def __init__(self, count, number):
        self.count, self.number, self.seen = count, number, []

    def __call__(self, source, target):
        self.seen.append(str(target))
        if len(self.seen) > self.count:
            half = os.path.getsize(source) // 2
            os.truncate(source, half)
            raise OSError(self.number, os.strerror(self.number))
        return os.rename(source, target)


def run_until_full(lab, monkeypatch, count, number):
    refusing = Refusing(count, number)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", refusing)
        code, err = lab("out=run")
    return refusing, code, err


@pytest.mark.parametrize(
    ("share", "number"),
    [(0.0, errno.ENOSPC), slow((0.4, errno.ENOSPC)), (0.6, errno.EFBIG), slow((0.9, errno.ENOSPC))],
)
def test_a_run_whose_writes_fail_says_so_and_is_continued(lab, tmp_path, monkeypatch, share, number):
    whole, code, err = run_until_full(lab, monkeypatch, 1000, number)
    assert (code, err) == (0, "")
    expected = {name: read(tmp_path / "run", name) for name in ("activations", "drift")}
    shutil.rmtree(tmp_path / "run")

    written = [name for name in whole.seen if "summary.json" not in name]
    refusing, code, err = run_until_full(lab, monkeypatch, int(share * len(written)), number)
    assert code == 2
    refused = refusing.seen[refusing.count]
    assert f"{refused} cannot be written: {os.strerror(number)}" in err
    assert len(err.strip().splitlines()) == 1
    left = [path for path in tmp_path.rglob("*") if path.suffix == ".tmp" or path.name == ".lock"]
    assert not left
    if refusing.count == 0:
        assert not (tmp_path / "run").exists(), "nothing was written, so the folder is gone too"
        return
    again = ["resume=true"] if (tmp_path / "run" / "manifest.json").exists() else []
    code, err = lab("out=run", *again)
    assert code == 0, err
    assert read_json(tmp_path / "run" / "manifest.json")["status"] == "complete"
    for name, table in expected.items():
        pd.testing.assert_frame_equal(read(tmp_path / "run", name), table, check_exact=True)


def test_a_report_that_cannot_be_written_is_one_line(lab, tmp_path, monkeypatch):
    assert lab("out=run")[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refuse(source, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), source)

    monkeypatch.setattr(files.os, "replace", refuse)
    code, err = lab("report", "run=run")
    assert code == 2
    assert "summary.json cannot be written: Read-only file system" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_interrupted_run_says_so_on_the_terminal(lab, tmp_path, monkeypatch, capsys):
    run_until_full(lab, monkeypatch, 5, errno.ENOSPC)
    manifest = tmp_path / "run" / "manifest.json"
    for status, said in (
        ("failed", "failed: "),
        ("interrupted", "interrupted: "),
        ("running", "ended in the middle: "),
    ):
        text = manifest.read_text()
        manifest.write_text(text.replace('"status": "running"', f'"status": "{status}"'))
        assert main(["report", "run=run"]) == 0
        out = capsys.readouterr().out
        assert f"{said}this run was not finished" in out
        assert "resume=true continues" in out
        manifest.write_text(text)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("size", [10, 100_000], ids=["fails when it is closed", "fails in the middle"])
def test_arrays_of_the_reference_on_a_full_disk(tmp_path, size):
    (tmp_path / "a.tmp").symlink_to("/dev/full")
    with (
        pytest.raises(NotWrittenError, match=r"a\.f32 cannot be written: No space left on device"),
        writing(tmp_path / "a.f32") as writer,
    ):
        writer.put("x", np.zeros(size))
    assert list(tmp_path.iterdir()) == [], "what was written would fill the disk"
