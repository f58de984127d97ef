"""Main effects and interactions of a factorial experiment: a figure and the rows of its table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from precision_lab.report.figures import labels, style
from precision_lab.report.figures.style import Absent, Drawing
from precision_lab.report.view import View

TITLE = "Main effects and interactions"
CAPTION = (
    "Each effect as a factor on the relative L2 drift of the final {result}, log scale, with its 95 % interval over "
    "prompts; left of 1 is less drift. A main effect compares all runs with the technique with all without; "
    "an interaction (x) is away from 1 where its techniques do not act independently."
)
COLOURS = {"less drift": "#2f7d4f", "more drift": "#b3261e"}


@dataclass(frozen=True)
class Row:
    """One effect in the table; `decibels` is 20 log10 of it, and a negative value means less error."""

    name: str
    aliases: str
    effect: float | None
    interval: list[float] | None
    decibels: float | None
    finding: str


@dataclass(frozen=True)
class Table:
    """The effects on one base, or the `reason` why there are none."""

    base: str
    noise_floor: float | None
    rows: tuple[Row, ...]
    reason: str


def tables(view: View) -> list[Table]:
    """One table per factorial of the run."""
    summary = view.run.summary
    return [
        Table(
            record["base"],
            record["noise_floor"],
            tuple(_row(effect) for effect in record["effects"]),
            record.get("effects_reason", ""),
        )
        for record in (summary.factorials if summary else ())
    ]


def draw(view: View) -> Drawing | Absent | None:
    """Draws the figure; None for a run without a factorial."""
    found = tables(view)
    drawn = [table for table in found if table.rows]
    if not drawn:
        return Absent(TITLE, found[0].reason) if found else None
    heights = [_lines(table) for table in drawn]
    figure = style.new_figure(0.8 + 0.24 * sum(heights) + 0.5 * len(drawn), hspace=0.05)
    grid = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, table in zip(grid, drawn, strict=True):
        _draw(axes, table, view.layout.result.title)
    return Drawing("factorial", TITLE, figure, _caption(drawn, view.layout.result.title))


def _names(table: Table) -> list[str]:
    """The labels of the rows, no two the same."""
    return list(labels.folded([row.name for row in table.rows], 44).values())


def _lines(table: Table) -> float:
    """The height of a panel, in rows of one line."""
    return len(table.rows) * (1.4 if any("\n" in name for name in _names(table)) else 1.0)


def _caption(drawn: Sequence[Table], result: str) -> str:
    text = CAPTION.format(result=result)
    if any(table.noise_floor is not None for table in drawn):
        text += " Grey band: noise floor of a single run."
    if any(row.effect is None for table in drawn for row in table.rows):
        text += " Crosses: not estimated."
    return text


def _row(effect: Mapping[str, Any]) -> Row:
    ratio = effect["effect"]
    return Row(
        " x ".join(effect["factors"]),
        ", ".join(effect["aliases"]),
        ratio,
        effect["ci95"],
        None if ratio is None else 20 * math.log10(ratio),
        effect["finding"],
    )


def _draw(axes: Axes, table: Table, result: str) -> None:
    ends = [1.0]
    for at, row in enumerate(table.rows):
        colour = COLOURS.get(row.finding, style.MUTED)
        if row.effect is None:
            axes.scatter(1.0, at, marker="x", color=style.MUTED)
            continue
        lo, hi = row.interval or (row.effect, row.effect)
        ends += [lo, hi, row.effect]
        axes.hlines(at, lo, hi, color=colour, linewidth=1.6)
        axes.scatter(row.effect, at, color=colour, s=22, zorder=3)
    if table.noise_floor is not None:
        factor = 1 + table.noise_floor
        ends += [factor, 1 / factor]
        axes.axvspan(1 / factor, factor, color=style.FAINT, linewidth=0, zorder=0)
    axes.axvline(1, color=style.MUTED, linewidth=0.8, zorder=0.5)
    margin = 1.15
    low, high = min(ends) / margin, max(ends) * margin
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    many = np.log10(high / low) > 1.5
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if many else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.plain(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(table.rows)), _names(table))
    axes.set_ylim(len(table.rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_title(f"On {table.base}")
    axes.set_xlabel(f"factor on the drift of the {result}, lower is better")
    axes.grid(axis="x")
