"""The figure of the study: coverage of each interval, beside the one that it replaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from experiments.coverage.claims import DISTRIBUTIONS
from experiments.coverage.latency import OUTLIERS
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Drawing

SHOWN = {(4, 1): style.PALETTE[0], (4, 3): style.PALETTE[1], (12, 1): style.PALETTE[2]}
TITLES = {"normal": "normal", "t3": "heavy tails", "gumbel": "skewness 1.1", "exponential": "skewness 2"}
LEAST = 0.64
TARGET = (0.93, 0.98)


def draw(found: Mapping[str, Any]) -> Drawing:
    figure = style.new_figure(5.4)
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1))
    for axes, name in zip(upper.subplots(1, len(DISTRIBUTIONS), sharey=True), DISTRIBUTIONS, strict=True):
        _claims(axes, [cell for cell in found["claims"] if cell["distribution"] == name], TITLES[name])
    for axes, name in zip(lower.subplots(1, len(OUTLIERS), sharey=True), OUTLIERS, strict=True):
        cells = [c for c in found["latency"] if c["outliers"] == name and c["nominal"] == found["confidence"]]
        _latency(axes, cells, f"latency, {name}")
    upper.supxlabel("share of the prompts in the variance of the log ratio", fontsize=9)
    upper.supylabel("coverage of 95 %", fontsize=9)
    lower.supxlabel("rounds of timing", fontsize=9)
    lower.supylabel("coverage of 95 %", fontsize=9)
    handles = [Line2D([], [], color=colour) for colour in SHOWN.values()]
    names = [f"{prompts} prompts x {seeds} seed{'s' * (seeds > 1)}" for prompts, seeds in SHOWN]
    handles += [Line2D([], [], color=style.INK), Line2D([], [], color=style.INK, linestyle="--")]
    figure.legend(handles, [*names, "now", "before"], loc="outside upper left", ncols=len(handles))
    return Drawing("coverage", "Coverage", figure, "")


def _claims(axes: Axes, cells: list[dict[str, Any]], title: str) -> None:
    for (prompts, seeds), colour in SHOWN.items():
        own = [cell for cell in cells if (cell["prompts"], cell["seeds"]) == (prompts, seeds)]
        shares = [cell["share"] for cell in own]
        axes.plot(shares, [cell["prompts_coverage"] for cell in own], color=colour, marker="o", markersize=3)
        if seeds > 1:
            axes.plot(shares, [cell["cases_coverage"] for cell in own], color=colour, linestyle="--")
    axes.set_title(f"claims, {title}")
    _frame(axes)


def _latency(axes: Axes, cells: list[dict[str, Any]], title: str) -> None:
    rounds = [cell["rounds"] for cell in cells]
    axes.plot(rounds, [cell["coverage"] for cell in cells], color=style.INK, marker="o", markersize=3)
    axes.plot(rounds, [cell["bootstrap_coverage"] for cell in cells], color=style.INK, linestyle="--")
    axes.set_xscale("log")
    axes.set_xticks(rounds, [str(n) for n in rounds])
    axes.minorticks_off()
    axes.set_title(title)
    _frame(axes)


def _frame(axes: Axes) -> None:
    axes.axhspan(*TARGET, color=style.FAINT, linewidth=0, zorder=0)
    axes.axhline(0.95, color=style.MUTED, linewidth=0.8, zorder=1)
    axes.set_ylim(LEAST, 1.0)
