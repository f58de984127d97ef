"""How the figures and the page of a gate's history name its runs and its sites."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes

from precision_lab.analysis.history import History
from precision_lab.record.address import with_port
from precision_lab.report.figures import style

PLACE = ["component", "site", "port"]


def in_groups(runs: pd.DataFrame) -> list[int]:
    """Numbers of the runs, grouped by device and MLX version, and in order of time within each group."""
    groups = runs.groupby(["device", "mlx"], sort=False)
    return [int(run) for _, group in groups for run in group.index]


def label_runs(axes: Axes, runs: pd.DataFrame, first: Iterable[int], width: float) -> None:
    """Labels the columns of `axes` with commits, as many as fit into `width` inches, in orange where the gate failed.

    first: columns with priority for a label.
    """
    last = len(runs) - 1
    apart = max(1.0, 0.15 * len(runs) / width)
    labelled: list[int] = []
    for at in (*first, last, 0, *range(0, last, max(1, round(apart)))):
        if all(abs(at - other) >= apart for other in labelled):
            labelled.append(at)
    labelled.sort()
    axes.set_xticks(labelled, [short(runs["commit"].iloc[at]) for at in labelled], rotation=90, fontsize=8)
    for at, text in zip(labelled, axes.get_xticklabels(), strict=True):
        if runs["verdict"].iloc[at] == "failed":
            text.set_color(style.ink(style.PALETTE[1]))
    axes.tick_params(axis="x", length=2)


def main_component(history: History) -> str:
    """The component with the most addresses, which other pages omit from an address."""
    places = history.rows[PLACE].drop_duplicates()
    return str(places["component"].value_counts().idxmax()) if len(places) else ""


def address_of(component: str, site: str, port: str, main: str) -> str:
    """The name of a site on other pages, such as `transformer_blocks.3 (out.0)`; main: see `main_component`."""
    return with_port(site if component in ("", main) else f"{component}:{site}", port)


def short(commit: str) -> str:
    """The first eight digits of a commit, with a plus sign if there were local changes."""
    digits, _, rest = commit.partition("-")
    return (digits[:8] + ("+" if rest else "")) or "no commit"
