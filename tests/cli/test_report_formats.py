"""`report format=md` and `format=badge`, in this process."""

from __future__ import annotations

import json
import shutil

import pytest

from precision_lab.cli import main
from precision_lab.cli.report_formats import NAMES
from precision_lab.record.scan_tables import GROUPS
from precision_lab.record.tables import merged_path
from tests.report.fabricated_run import fabricate

SMALL = {"blocks": 2, "steps": 2, "prompts": ("a",), "seeds": (0, 5), "side": 32, "overflowing": ()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("formats") / "run", ("reference", "baseline", "ffn_scaling"), **SMALL)


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def test_markdown_is_all_that_goes_to_standard_output(run, capsys):
    assert main(["report", f"run={run}", "format=md"]) == 0
    out, err = capsys.readouterr()
    assert out == (run / "report.md").read_text(encoding="utf-8")
    assert out.startswith("## ffn_scaling")
    assert err == f"report: {run / 'report.md'}\n"
    assert not (run / "report.html").exists()
    assert not (run / "figures").exists()


def test_a_badge_beside_the_report(run, capsys):
    assert main(["report", f"run={run}", "format=badge"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "badge.svg, badge.json (ffn_scaling: " in err
    assert json.loads((run / "badge.json").read_text())["schemaVersion"] == 1


@pytest.mark.parametrize("form", ["md", "badge"])
def test_the_exit_code_is_that_of_the_verdicts(run, form, capsys):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["errors"] = {"baseline": "ValueError: <b>|x|</b>"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert main(["report", f"run={run}", f"format={form}"]) == 1
    _, err = capsys.readouterr()
    assert "exit code 1: variant baseline failed" in err
    if form == "md":
        assert "**Exit code 1**" in (run / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run={run}", "format=pdf"], "format is 'pdf', expected one of html, md, badge"),
        (["run={run}/nothing", "format=md"], "is not the folder of a run"),
        (["run={scan}", "format=badge"], "holds a scan of sensitivity, which has the formats html and md"),
        (["history={run}/h.csv", "format=badge"], "holds a gate's history, which has the formats html and md"),
        (["run={run}", "format=[md,html]"], "format"),
    ],
)
def test_what_has_no_such_format_is_refused(run, tmp_path, capsys, arguments, said):
    scan = tmp_path / "scan"
    scan.mkdir()
    merged_path(scan, GROUPS).touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", *(argument.format(run=run, scan=scan) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert out == ""
    assert len(err.splitlines()) <= 2
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["gate.json", "manifest.json", "drift.parquet"])
@pytest.mark.parametrize("form", ["md", "badge"])
def test_a_damaged_file_leaves_nothing_behind(run, capsys, name, form):
    (run / name).write_text("{")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["report", f"run={run}", f"format={form}"]) == 2
    assert name in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_every_kind_has_a_name():
    assert set(NAMES) == {"run", "scan", "culprits", "survival", "search", "history"}
