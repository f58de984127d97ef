"""The page on a gate's history: the commits at which the ranges of sites stepped, and two figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from precision_lab.analysis.history import FLOOR_BITS, History
from precision_lab.record.files import write_atomically, write_text, writing
from precision_lab.report.figures import history_lines, history_map, style
from precision_lab.report.figures.history_names import address_of, main_component, short
from precision_lab.report.rendering import Figure, embed, render

MOST_SITES = 12  # listed per commit; the .csv has all


@dataclass(frozen=True)
class Change:
    """All steps between two gate runs of one device and MLX version; `sites` lists the largest."""

    commit: str
    before: str
    time: str
    environment: str
    passed: bool
    count: int
    sites: list[dict[str, Any]]


def write(history: History, steps: pd.DataFrame, name: str, folder: Path) -> Path:
    """Writes NAME.html, NAME_steps.csv and the figures NAME_*.png, .svg into `folder`; returns the page's path.

    steps: the result of `analysis.history.steps`. The same history gives the same bytes.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with style.theme():
        drawings = [draw(history, steps) for draw in (history_map.draw, history_lines.draw)]
        figures = embed(drawings, folder, f"{name}_")
    listed = _with_commits(history, steps)
    write_atomically(folder / f"{name}_steps.csv", lambda file: listed.to_csv(file, index=False))
    page = folder / f"{name}.html"
    write_text(page, _render(history, changes(history, steps), name, figures))
    return page


def changes(history: History, steps: pd.DataFrame) -> list[Change]:
    """The steps grouped by the run at which they appear, newest first."""
    runs = {int(number): run for number, run in zip(history.runs.index, history.runs.to_dict("records"), strict=True)}
    found = {}
    for _, group in steps.groupby(["run", "run_before"], sort=False):
        after, before = int(group["run"].iloc[0]), int(group["run_before"].iloc[0])
        found[after, before] = Change(
            commit=short(runs[after]["commit"]),
            before=short(runs[before]["commit"]),
            time=runs[after]["time"],
            environment=f"{runs[after]['device']}, MLX {runs[after]['mlx']}",
            passed=runs[after]["verdict"] == "passed",
            count=len(group),
            sites=_listed(group, main_component(history)),
        )
    return [found[key] for key in sorted(found, reverse=True)]


def _listed(steps: pd.DataFrame, main: str) -> list[dict[str, Any]]:
    """The sites with the largest steps in descending order; sites that lost their values come first."""
    largest = steps.iloc[(-steps["bits"].abs().to_numpy()).argsort(kind="stable")[:MOST_SITES]]
    return [
        {
            "address": address_of(row["component"], row["site"], row["port"], main),
            "step": history_lines.step_size(row["bits"], row["before"]),
            **{key: row[key] for key in ("variant", "before", "after")},
        }
        for row in largest.to_dict("records")
    ]


def _with_commits(history: History, steps: pd.DataFrame) -> pd.DataFrame:
    """The steps for a file, with commits and times instead of run numbers."""
    runs = history.runs
    table = steps.drop(columns=["run", "run_before", "order"])
    table.insert(0, "time", runs["time"].reindex(steps["run"]).to_numpy())
    table.insert(1, "commit_before", runs["commit"].reindex(steps["run_before"]).to_numpy())
    table.insert(2, "commit", runs["commit"].reindex(steps["run"]).to_numpy())
    return table.round({"before": 4, "after": 4, "bits": 4})


def _render(history: History, found: list[Change], name: str, figures: list[Figure]) -> str:
    runs = history.runs
    return render(
        "history.html",
        name=name,
        runs=len(runs),
        failed=int((runs["verdict"] == "failed").sum()),
        first=runs.iloc[0].to_dict(),
        last=runs.iloc[-1].to_dict(),
        last_passed=runs["verdict"].iloc[-1] == "passed",
        sites=len(history.rows[["component", "site", "port"]].drop_duplicates()),
        environments=list(dict.fromkeys(runs["device"] + ", MLX " + runs["mlx"])),
        changes=found,
        floor=FLOOR_BITS,
        figures=figures,
    )
