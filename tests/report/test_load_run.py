"""`load_run`: frames and figures of a fabricated run, and the page of the guide on them."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from precision_lab import InputError, load_run
from precision_lab.record.scan_tables import GROUPS
from precision_lab.record.summary import Summary
from precision_lab.record.tables import merged_path
from precision_lab.report import frames
from precision_lab.report.loaded import Figures
from tests.report.fabricated_run import fabricate

PAGE = Path(__file__).parents[2] / "experiments" / "guide" / "python.md"
FRAMES = ("activations", "drift", "latency", "generations", "nonfinite", "summary", "claims")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    size = {"blocks": 4, "steps": 2, "prompts": ("a",), "seeds": (0, 5), "side": 32}
    return fabricate(tmp_path_factory.mktemp("loaded") / "run", ("reference", "baseline", "ffn_scaling"), (), **size)


@pytest.fixture(scope="module")
def run(folder):
    return load_run(str(folder))


def test_frames_have_the_declared_columns_in_their_dtypes(run):
    for name in FRAMES:
        frame, about = getattr(run, name).reset_index(), run.columns(name)
        assert list(about.columns) == ["dtype", "unit", "meaning"]
        declared = [column for column in about.index if column in frame]
        assert declared, name
        if name not in ("nonfinite", "generations"):
            assert len(frame) > 0, name
        for column in declared:
            assert str(frame[column].dtype) == about["dtype"][column], (name, column)
            assert about["meaning"][column], (name, column)
    assert set(run.drift.columns) == set(run.columns("drift").index)


def test_the_frames_say_what_the_summary_says(folder, run):
    summary = Summary.read(folder)
    assert list(run.summary.index) == list(summary.variants)
    entry = summary.variants["ffn_scaling"]
    row = run.summary.loc["ffn_scaling"]
    assert row["latent_rel_l2"] == entry.latent_rel_l2.value
    assert (row["time_ratio_lo"], row["time_ratio_hi"]) == entry.latency.ci95
    assert row["peak_memory_bytes"] == entry.peak_memory_bytes.value
    assert run.summary["psnr_db"]["reference"] == float("inf")
    assert list(run.claims["verdict"]) == [claim.verdict for claim in summary.claims]
    assert run.claims["effect"]["S3-amax"] == 2.21
    assert run.summary["error"].isna().all()


def test_a_frame_is_the_users_own(folder):
    run = load_run(folder)
    run.activations["amax"] = 0.0
    assert load_run(folder).activations["amax"].max() > 0
    assert any(line.get_ydata().max() > 1 for line in run.figures.growth().axes[0].lines if len(line.get_ydata()) > 2)


def test_nothing_is_read_before_it_is_used_and_nothing_is_written(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "run")
    (copy / "summary.json").unlink()
    (copy / "drift.parquet").write_text("no table")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    run = load_run(copy)
    assert "2 variants" not in repr(run)
    assert len(run.latency)
    with pytest.raises(InputError, match=r"drift\.parquet is not a table"):
        _ = run.drift
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_a_run_that_was_not_judged_is_judged_in_memory(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "run")
    (copy / "summary.json").unlink()
    run = load_run(copy)
    assert set(run.claims["verdict"]) <= {"supported", "refuted", "inconclusive"}
    assert run.summary["latent_rel_l2"]["baseline"] > 0
    assert not (copy / "summary.json").exists()


@pytest.mark.slow
def test_figures_are_those_of_matplotlib_or_say_why_not(run, tmp_path, caplog):
    names = [name for name in vars(Figures) if not name.startswith("_")]
    assert len(names) == 13
    absent = ("variants", "drift_divergence", "exponents", "contributions", "factorial")
    made = {name: getattr(run.figures, name)() for name in names if name not in absent}
    for name in absent:
        with pytest.raises(InputError, match=re.escape(f"{run.path}: ")):
            getattr(run.figures, name)()
    assert all(isinstance(figure, Figure) for figure in made.values())
    with caplog.at_level(logging.WARNING):  # matplotlib logs missing fonts
        made["growth"].savefig(tmp_path / "growth.png")
    assert not caplog.records
    assert "10⁴" in [label.get_text() for label in made["growth"].axes[0].get_yticklabels()]
    assert (tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere", "is not the folder of a run: no such folder"),
        ("empty", r"there is no manifest\.json in it"),
        ("above", "It has 2 runs below it. Did you mean .*2026"),
        ("scan", "holds a scan of sensitivity, expected the run of an experiment"),
        ("file", "not a folder"),
    ],
)
def test_a_folder_without_a_run_is_named(folder, tmp_path, place, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "scan").mkdir()
    merged_path(tmp_path / "scan", GROUPS).touch()
    for name in ("20250101T000000Z", "20260101T000000Z"):
        (tmp_path / "above" / "exp" / name).mkdir(parents=True)
        shutil.copy(folder / "manifest.json", tmp_path / "above" / "exp" / name)
    with pytest.raises(ValueError, match=said):
        load_run(tmp_path / place)


def test_importing_the_package_is_light():
    heavy = "{'mlx', 'numpy', 'pandas', 'matplotlib', 'scipy'}"
    code = (
        f"import sys, precision_lab; assert 'load_run' in precision_lab.__all__; assert not {heavy} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


def test_every_block_of_the_page_runs_in_order(folder, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len([line for line in blocks[0].splitlines() if line.strip() and not line.startswith("#")]) <= 5
    monkeypatch.chdir(tmp_path)
    for name in ("ffn_scaling/20261128T120000Z", "first", "second"):
        shutil.copytree(folder, tmp_path / "results" / "runs" / name)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert (tmp_path / "growth.png").is_file()
    assert (tmp_path / "drift.svg").is_file()
    assert set(names["local"].index) == {"baseline", "ffn_scaling"}
    assert isinstance(names["drift"], pd.DataFrame)
    assert "latent_rel_l2" in capsys.readouterr().out
    listed = set(re.findall(r"`(\w+)`", PAGE.read_text().partition("## Figures")[2].partition("```")[0]))
    assert {name for name in vars(Figures) if not name.startswith("_")} <= listed


def test_every_frame_is_on_the_page():
    for name in FRAMES:
        assert f"`{name}`" in PAGE.read_text()
    assert len({column.name for column in frames.SUMMARY}) == len(frames.SUMMARY)
