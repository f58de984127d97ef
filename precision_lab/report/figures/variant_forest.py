"""Many variants side by side: the final error of each case, and the ratio to the baseline's with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from precision_lab.analysis.claims import Claim
from precision_lab.analysis.measures import final_drift
from precision_lab.analysis.ratios import over_units, unit_of
from precision_lab.report.figures import forest, labels, style
from precision_lab.report.figures.style import Drawing
from precision_lab.report.view import MOST_VARIANTS, View
from precision_lab.report.wording import interval, number

COLOUR = style.PALETTE[0]
BASELINE = style.PALETTE[1]
CROSS: Mapping[str, Any] = {"markersize": 5, "markeredgewidth": 1.2}
WORDS = 12.0  # the column of words, in points from the axes


@dataclass(frozen=True)
class Row:
    """A variant as drawn: the errors of its cases, their geometric mean and its ratio to the baseline's, each as
    (estimate, lo, hi), and how many cases are not finite."""

    name: str
    errors: npt.NDArray[np.float64]
    mean: tuple[float, float, float]
    ratio: tuple[float, float, float]
    lost: int
    is_baseline: bool

    @property
    def words(self) -> str:
        """The ratio, or why there is none; nothing for the baseline itself."""
        if self.lost:
            return f"not finite in {self.lost} of {len(self.errors)}"
        if not np.all(self.errors > 0):
            return "identical to the reference"
        value, lo, hi = self.ratio
        if not math.isfinite(value) or self.is_baseline:
            return ""
        return number(value) + (f" {interval((lo, hi))}" if math.isfinite(lo) else "")


def draw(view: View) -> Drawing | None:
    """None for a run with few variants, whose figures show them all, or without drift of the result."""
    if view.drift is None or len(view.variants) <= MOST_VARIANTS:
        return None
    groups = _groups(view)
    if not groups:
        return None
    every = [row for rows in groups.values() for row in rows]
    floor = _noise_floor(view)
    named = labels.folded([row.name for row in every], 34)
    heights = [sum(forest.height(named[row.name]) for row in rows) for rows in groups.values()]
    figure = style.new_figure(1.2 + sum(heights) + 0.33 * len(groups), wspace=0.02)
    grid = figure.subplots(len(groups), 2, squeeze=False, height_ratios=heights, width_ratios=(1.35, 1))
    errors = np.concatenate([row.errors for row in every])
    low, high = style.log_range([errors])
    limits = forest.ratio_limits([end for row in every for end in row.ratio])
    every_ratio = [row.ratio[0] for row in every]
    base = next((row.mean[0] for row in every if row.is_baseline), math.nan)
    for (left, right), (title, rows) in zip(grid, groups.items(), strict=True):
        last = title == next(reversed(groups))
        left.set_title(f"Computed in {title}")
        _error_axis(left, (low, high), base)
        forest.ratio_axis(right, limits)
        texts = [named[row.name] for row in rows]
        centres = forest.lay_out(left, texts)
        forest.lay_out(right, texts)
        right.tick_params(labelleft=False)
        for axes in (left, right):
            axes.tick_params(labelbottom=last)
        if math.isfinite(floor):
            right.axvspan(1 / (1 + floor), 1 + floor, color=forest.BAND, linewidth=0, zorder=0.3)
        for row, y in zip(rows, centres, strict=True):
            _draw_row(left, right, row, y)
    result = view.layout.result.title
    grid[-1, 0].set_xlabel(f"relative L2 error of the final\n{result} (lower is better)")
    grid[-1, 1].set_xlabel(f"ratio to {labels.shorten(view.baseline, 24)}\n(left of 1 is better)")
    spans = any(math.isfinite(row.mean[1]) for row in every)
    forest.head(grid[0, 1], WORDS, "ratio [95 % interval]" if spans else "ratio")
    _legend(figure, view.baseline, math.isfinite(floor), any(row.lost for row in every), spans)
    title = f"All variants: error of the {result}"
    beyond = forest.beyond(limits, every_ratio)
    return Drawing("variants", title, figure, _caption(view, len(every[0].errors), floor, beyond, spans))


def _caption(view: View, cases: int, floor: float, beyond: bool, spans: bool) -> str:
    interval = " with its 95 % interval over prompts, which is wide where prompts differ" if spans else ""
    text = (
        f"Relative L2 distance of the {view.layout.result.title} from the reference's after the last step, "
        f"free-running, log scale. Left: each case (prompt and seed; {cases} in all), and their geometric mean"
        f"{interval}; the line is {view.baseline}. Right: the ratio to {view.baseline} "
        f"within each case{', which leaves that out' if spans else ''}."
    )
    if beyond:
        text += " Triangles: beyond the axis."
    if math.isfinite(floor):
        text += f" Shaded: the noise floor, what equivalent runs of {view.baseline} differ by."
    return text


def _groups(view: View) -> dict[str, list[Row]]:
    """Variants by the dtype they compute in, the least error first, those that are not finite last."""
    found = {name: final_drift(view.run, name) for name in view.variants if name != view.reference}
    base = found.get(view.baseline, pd.Series(dtype=float))
    groups: dict[str, list[Row]] = {}
    for name, errors in found.items():
        if len(errors):
            groups.setdefault(view.entry(name).dtype.compute, []).append(
                _row(name, errors, base, unit_of(view.manifest))
            )
    for rows in groups.values():
        rows.sort(key=lambda row: (row.lost > 0, row.lost, row.mean[0] if math.isfinite(row.mean[0]) else 0.0))
    return groups


def _row(name: str, errors: pd.Series, base: pd.Series, unit: str) -> Row:
    values = errors.to_numpy(float)
    lost = int(np.isnan(values).sum())
    mean = over_units(errors, pd.Series(1.0, index=errors.index), unit)
    ratio = over_units(errors, base, unit)
    return Row(
        name, values, (mean.estimate, mean.lo, mean.hi), (ratio.estimate, ratio.lo, ratio.hi), lost, errors is base
    )


def _noise_floor(view: View) -> float:
    """The largest noise floor that a claim on the drift of the result states for the baseline; NaN if none does."""
    stated = {claim.id: claim for claim in map(Claim.from_dict, view.manifest.claims)}
    entries = view.run.summary.claims if view.run.summary else ()
    measured = [
        entry.noise_floor.value
        for entry in entries
        if entry.metric == "drift" and entry.against == view.baseline and entry.id in stated
        if not stated[entry.id].sites
    ]
    return max((float(floor) for floor in measured if floor is not None), default=math.nan)


def _error_axis(axes: Axes, limits: tuple[float, float], base: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    style.log_ticks(axes.xaxis, *limits)
    axes.grid(axis="x")
    if math.isfinite(base):
        axes.axvline(base, color=BASELINE, linewidth=0.8, zorder=1)


def _draw_row(left: Axes, right: Axes, row: Row, y: float) -> None:
    colour = BASELINE if row.is_baseline else COLOUR
    positive = row.errors[row.errors > 0]
    below = np.full(len(positive), y + 0.06)  # or their mean would cover them
    left.scatter(positive, below, s=10, color=colour, alpha=0.4, linewidths=0, zorder=2)
    forest.draw_effect(left, y - 0.03, row.mean, colour, "d")
    if row.lost:
        left.plot(0.985, y, "x", color=style.INK, transform=left.get_yaxis_transform(), **CROSS)
    forest.draw_effect(right, y, row.ratio, colour, "o")
    forest.write_beside(right, y, WORDS, row.words)


def _legend(figure: Figure, baseline: str, floor: bool, lost: bool, spans: bool) -> None:
    dots: dict[str, Any] = {"linestyle": "none", "color": COLOUR}
    interval = ", 95 % interval" if spans else ""
    entries: dict[str, Any] = {
        "one case": Line2D([], [], marker="o", markersize=3.5, alpha=0.35, markeredgewidth=0, **dots),
        f"geometric mean{interval}": Line2D([], [], marker="d", markersize=forest.MARKER, color=COLOUR),
        f"ratio{interval}": Line2D([], [], marker="o", markersize=forest.MARKER, color=COLOUR),
        baseline: Line2D([], [], color=BASELINE),
    }
    if lost:
        entries["not finite"] = Line2D([], [], linestyle="none", marker="x", color=style.INK, **CROSS)
    if floor:
        entries["noise floor"] = Patch(color=forest.BAND, linewidth=0)
    place: dict[str, Any] = {"loc": "outside upper left", "ncols": len(entries), "borderaxespad": 0.2}
    figure.legend(list(entries.values()), list(entries), handlelength=1.8, **place)
