"""`report runs=...`: the index of many runs, sound or not, in this process."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest

from precision_lab.cli import main
from precision_lab.record import tables
from precision_lab.record.manifest import Manifest
from precision_lab.record.scan_tables import GROUPS
from precision_lab.record.summary import Summary
from tests.report.conftest import unrendered
from tests.report.fabricated_run import fabricate
from tests.report.test_page import Resources, edit, text_of
from tests.report.test_sweep_page import cells

__all__ = ["unrendered"]

SMALL = {"blocks": 2, "steps": 2, "prompts": ("a",), "seeds": (0,), "side": 32, "overflowing": ()}
HOSTILE = "<script>alert(1)</script> | `x` @somebody"


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run without its tables: the index must not need them."""
    run = fabricate(tmp_path_factory.mktemp("one") / "run", ("reference", "baseline", "ffn_scaling"), **SMALL)
    for name in ("images", *(f"{table}.parquet" for table in tables.LEADING)):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return run


@pytest.fixture
def runs(one, tmp_path, monkeypatch):
    """Runs as commands leave them, and what becomes of some."""
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "results" / "runs"
    for name in ("exp/20260101T000000Z", "exp/20260102T000000Z", "cut/1", "scan/1", "multi/0", "multi/1", "gated/1"):
        shutil.copytree(one, base / name)
    (base / "exp" / "20260101T000000Z" / "report.html").touch()
    edit(base / "exp" / "20260102T000000Z", experiment="other", errors={"baseline": HOSTILE})
    summary = Summary.read(one)
    failed = {**summary.variants, "baseline": replace(summary.variants["baseline"], error=HOSTILE)}
    replace(summary, variants=failed).write(base / "exp" / "20260102T000000Z")
    edit(base / "cut" / "1", status="interrupted", finished=None)
    (base / "cut" / "1" / "summary.json").unlink()
    tables.merged_path(base / "scan" / "1", GROUPS).touch()
    (base / "multi" / "1" / "manifest.json").write_text("{")
    (base / "gated" / "1" / "gate.json").write_text(json.dumps({"passed": False, "violations": [{}]}))
    (base / "not_a_run").mkdir()
    (base / "not_a_run" / "notes.txt").touch()
    return base


def name(row: list[str]) -> str:
    """The run of a row, without the places where its name may break."""
    return row[0].split(" no report")[0].replace("/ ", "/")


def test_every_run_is_on_the_page_with_its_state(runs, unrendered, capsys):
    assert main(["report", "runs=results/runs"]) == 0
    out = capsys.readouterr().out
    page = runs / "index.html"
    assert out.rstrip().endswith("report: results/runs/index.html")
    rows = {name(row): row for row in cells(page, "runs")}
    assert set(rows) == {
        *("cut/1", "exp/20260101T000000Z", "exp/20260102T000000Z"),
        *("gated/1", "multi/0", "multi/1", "scan/1"),
    }
    whole = rows["exp/20260101T000000Z"]
    assert whole[1] == "ffn_ scaling"
    assert whole[2].startswith("2026-03-02 09:14 UTC")
    assert whole[3] == "full_ synthetic generated weights"
    assert "Apple M4 Max" in whole[4]
    assert "4f1c9d2ab8 with local changes" in whole[4]
    assert whole[5:7] == ["complete", "1 supported , 1 refuted , 1 inconclusive"]
    assert " to " in whole[7]
    other = rows["exp/20260102T000000Z"]
    assert other[5].startswith("complete exit code 1: variant baseline failed: &lt;script&gt;")
    assert rows["cut/1"][5].startswith("interrupted this run was not finished")
    assert rows["multi/1"][5].startswith("unreadable")
    assert "manifest.json is not strict JSON" in rows["multi/1"][5]
    assert rows["scan/1"][1].endswith("scan of sensitivity")
    assert "gate failed" in rows["gated/1"][5]
    assert {name(row) for row in cells(page)} == {"exp/20260101T000000Z", "exp/20260102T000000Z", "gated/1", "multi/0"}
    assert "2 of 7 runs are not complete: runs cut/1, multi/1" in text_of(page)
    assert "unreadable" in out


def test_the_page_is_self_contained_and_its_links_lead_to_reports(runs):
    assert main(["report", "runs=results/runs"]) == 0
    page = (runs / "index.html").read_text(encoding="utf-8")
    parsed = Resources(page)
    assert not parsed.open
    assert all(source.startswith("data:image/svg+xml") for source in parsed.sources)
    assert "alert(1)</script>" not in page
    targets = re.findall(r'<a href="([^"#]+)">', page)
    assert targets == ["exp/20260101T000000Z/report.html"]
    assert all((runs / unquote(target)).is_file() for target in targets)
    before = page
    assert main(["report", "runs=results/runs"]) == 0
    assert (runs / "index.html").read_text(encoding="utf-8") == before


def test_points_of_several_experiments_are_coloured_by_them_and_of_several_machines_are_ratios(runs, unrendered):
    assert main(["report", "runs=results/runs"]) == 0
    assert "median time of a step" in style_text(runs)
    other = runs / "multi" / "0"
    environment = replace(Manifest.read(other).environment, device="Apple M1")
    edit(other, environment=environment)
    assert main(["report", "runs=results/runs"]) == 0
    assert "run&#39;s baseline" in style_text(runs)


def style_text(runs: Path) -> str:
    """The description of the figure, in which its axes are named."""
    return re.findall(r'alt="([^"]*)"', (runs / "index.html").read_text(encoding="utf-8"))[0]


@pytest.mark.parametrize(
    ("given", "where", "names"),
    [
        ("runs=results/runs/exp/*", "results/runs/exp", ["20260101T000000Z", "20260102T000000Z"]),
        ("runs=[results/runs/exp,results/runs/cut/1]", "results/runs", ["exp/20260101T000000Z", "cut/1"]),
        ("runs=[results/runs/multi/0,results/runs/multi/0]", "results/runs/multi", ["0"]),
    ],
)
def test_patterns_and_lists(runs, given, where, names, unrendered):
    assert main(["report", given]) == 0
    found = [name(row) for row in cells(Path(where) / "index.html", "runs")]
    assert set(names) <= set(found)
    assert len(found) == len(set(found))


def test_out_is_the_folder_of_the_page(runs, unrendered):
    (runs.parent / "away").mkdir()
    assert main(["report", "runs=results/runs/exp", "out=results/away/page"]) == 0
    page = runs.parent / "away" / "page" / "index.html"
    (target,) = re.findall(r'<a href="([^"#]+)">', page.read_text())
    assert (page.parent / unquote(target)).is_file()
    assert not (runs / "exp" / "index.html").exists()


def test_the_index_in_markdown(runs, capsys):
    assert main(["report", "runs=results/runs", "format=md"]) == 0
    out, err = capsys.readouterr()
    assert out == (runs / "index.md").read_text(encoding="utf-8")
    assert out.startswith("## 7 runs in runs\n")
    assert "&lt;script>" in out
    assert "[exp/20260101T000000Z](exp/20260101T000000Z/report.html)" in out
    assert sum(line.startswith("| ") for line in out.splitlines()) == 2 + 7
    assert err.endswith("index.md\n")
    assert not (runs / "index.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs=results/runs/not_a_run"], "holds no run, and neither do the folders below it"),
        (["runs=results/rnus"], "results/rnus is no folder. Did you mean runs?"),
        (["runs=results/runs/exp/2025*"], "matches no folder with a run (0 other files and folders)"),
        (["runs=[]"], "report needs"),
        (["runs=['']"], "report needs runs=DIR"),
        (["runs=3"], "runs is 3, expected a folder of runs, a pattern, or a list like runs=[A,B]"),
        (["runs=results/runs/cut/1"], "is the folder of one run. Did you mean run=results/runs/cut/1?"),
        (["runs=results/runs", "run=a"], "one of them"),
        (["runs=results/runs", "format=badge"], "have the formats html and md"),
        (["runs=results/runs", "out=results/runs/not_a_run/notes.txt"], "is a file, expected a folder"),
    ],
)
def test_mistakes_leave_nothing(runs, capsys, arguments, said):
    before = sorted(runs.parent.rglob("*"))
    assert main(["report", *arguments]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert out == ""
    assert 1 <= len(err.splitlines()) <= 2
    assert sorted(runs.parent.rglob("*")) == before


@pytest.mark.slow
def test_the_page_of_200_runs_takes_seconds(one, tmp_path):
    for number in range(200):
        folder = tmp_path / "runs" / f"exp{number % 9}" / str(number)
        folder.mkdir(parents=True)
        for name in ("manifest.json", "summary.json", "config.yaml"):
            shutil.copy(one / name, folder / name)
    begun = time.process_time()
    assert main(["report", f"runs={tmp_path / 'runs'}"]) == 0
    assert time.process_time() - begun < 15
    assert len(cells(tmp_path / "runs" / "index.html", "runs")) == 200
    assert (tmp_path / "runs" / "index.html").stat().st_size < 4e6
