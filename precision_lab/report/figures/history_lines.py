"""The sites with the largest steps: log2 amax over gate runs, with the commit of each step."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from precision_lab.analysis.history import SERIES, History
from precision_lab.report.figures import labels, style
from precision_lab.report.figures.history_names import address_of, label_runs, main_component, short
from precision_lab.report.figures.style import Absent, Drawing
from precision_lab.report.wording import fixed

TITLE = "Sites with the largest steps"
MOST_SITES = 6
LINE, BAND, PASS, FAIL = style.PALETTE[0], style.MUTED, style.PALETTE[2], style.PALETTE[1]
CAPTION = (
    "log2 of the largest amax over the cases of a gate run. Blue line: mean between steps.{middle} At a step: the "
    "first commit at the new level, and by how many bits. Marks along the bottom: the verdict of the gate on the whole "
    "run."
)
PANELS = " One panel a site: of each commit with steps the site with the largest, then the next largest."
MIDDLE = " Dashed: the middle of the band that the baseline of that time allowed."


def draw(history: History, steps: pd.DataFrame) -> Drawing | Absent:
    """Draws the figure. steps: the result of `analysis.history.steps`."""
    if steps.empty:
        return Absent(TITLE, "No site has stepped.")
    chosen = _telling(steps)
    columns = min(2, len(chosen))
    lines = -(-len(chosen) // columns)
    figure = style.new_figure(0.7 + 2.1 * lines, wspace=0.04, hspace=0.05)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(chosen) :]:
        axes.set_axis_off()
    series = {key: rows for key, rows in history.rows.groupby(list(SERIES), sort=False) if key in chosen}
    stepped = dict(list(steps.groupby(list(SERIES), sort=False)))
    main = main_component(history)
    for axes, key in zip(grid.flat, chosen, strict=False):
        _draw_site(axes, series[key], stepped[key], history.runs, style.WIDTH / columns * 0.8, main)
    for axes in grid[:, 0]:
        axes.set_ylabel("log2 amax")
    shown = pd.concat([series[key] for key in chosen])
    has_bands = bool(shown["deviation_bits"].notna().any())
    _legend(figure, has_bands, set(history.runs.loc[shown["run"].unique(), "verdict"]))
    caption = CAPTION.format(middle=MIDDLE if has_bands else "") + (PANELS if len(chosen) > 1 else "")
    return Drawing("steps", TITLE, figure, caption)


def _telling(steps: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Selects up to MOST_SITES series. The runs with steps take turns, those with larger steps first, and each adds the
    series with its next largest step. A site of several variants is selected once.
    """
    queues = []
    for _, own in steps.assign(size=steps["bits"].abs()).groupby("run"):
        by_size = own.sort_values("size", ascending=False, kind="stable")
        listed = by_size.head(4 * MOST_SITES)
        queues.append((-by_size["size"].iloc[0], list(listed[list(SERIES)].itertuples(index=False, name=None))))
    chosen: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    turns = itertools.zip_longest(*(queue for _, queue in sorted(queues, key=lambda pair: pair[0])))
    for key in itertools.chain.from_iterable(turns):
        if key is not None:
            chosen.setdefault(key[1:4], key)
    return list(chosen.values())[:MOST_SITES]


def _draw_site(
    axes: Axes, rows: pd.DataFrame, steps: pd.DataFrame, runs: pd.DataFrame, width: float, main: str
) -> None:
    at = np.arange(len(rows))
    values = rows["log2_amax"].to_numpy(float)
    middle = values - rows["deviation_bits"].to_numpy(float)
    place = {int(run): index for index, run in enumerate(rows["run"])}
    cuts = [place[int(run)] for run in steps["run"]]
    edges = np.append(at - 0.5, len(at) - 0.5)
    axes.stairs(middle, edges, baseline=None, color=BAND, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    axes.plot(at, values, "o", color=LINE, markersize=3.5 if len(at) < 60 else 1.8, zorder=3, clip_on=False)
    for piece in np.split(at, cuts):
        level = values[piece][np.isfinite(values[piece])]
        if len(level):
            axes.hlines(level.mean(), piece[0] - 0.5, piece[-1] + 0.5, color=LINE, linewidth=1.6, zorder=2)
    _set_range(axes, np.append(values, middle), len(cuts))
    own = runs.loc[rows["run"]]
    _name_steps(axes, steps, cuts, own)
    passed = (own["verdict"] == "passed").to_numpy()
    _mark(axes, at[passed], "|", PASS)
    _mark(axes, at[~passed], "x", FAIL)
    axes.set_xlim(-0.7, max(len(at), 2) - 0.3)
    axes.grid(axis="y")
    label_runs(axes, own, cuts, width)
    first = rows.iloc[0]
    address = address_of(first["component"], first["site"], first["port"], main)
    axes.set_title(labels.shorten(address, 52), pad=12)
    under = labels.shorten(f"{first['variant']}, {first['device']}, MLX {first['mlx']}", 70)
    words: dict[str, Any] = {"fontsize": 8, "color": style.MUTED, "va": "bottom"}
    axes.text(0, 1.012, under, transform=axes.transAxes, **words)


def _set_range(axes: Axes, values: np.ndarray, names: int) -> None:
    """Sets the y range around the finite values, at least 0.1 bits, with space for verdicts below and commits above."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    span = max(high - low, 0.1)
    centre = (low + high) / 2
    axes.set_ylim(centre - 0.72 * span, centre + (0.75 + 0.11 * min(names, 3)) * span)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(axis="y", useOffset=False)


def _name_steps(axes: Axes, steps: pd.DataFrame, cuts: list[int], runs: pd.DataFrame) -> None:
    """Draws a dashed line and a label such as `1f3a9c2 +0.40` at each step, on the side with more space, stacked."""
    for number, (cut, bits, before) in enumerate(zip(cuts, steps["bits"], steps["before"], strict=True)):
        axes.axvline(cut - 0.5, color=style.INK, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        right = cut > len(runs) / 2
        shift: dict[str, Any] = {"textcoords": "offset points", "xytext": (-3 if right else 3, -1 - 9.5 * (number % 3))}
        words: dict[str, Any] = {"fontsize": 8, "va": "top", "ha": "right" if right else "left"}
        words["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        name = f"{short(runs['commit'].iloc[cut])[:7]} {step_size(bits, before)}"
        axes.annotate(name, (cut - 0.5, 1), xycoords=axes.get_xaxis_transform(), **shift, **words)


def step_size(bits: float, before: float) -> str:
    """The label of a step, such as `+0.40`; `no value` or `value again` if one side has no number."""
    if math.isfinite(bits):
        return f"{'+' if bits > 0 else ''}{fixed(bits, 2)}"
    return "no value" if math.isfinite(before) else "value again"


def _mark(axes: Axes, at: np.ndarray, marker: str, colour: str) -> None:
    look: dict[str, Any] = {"marker": marker, "color": colour, "s": 22 if len(at) < 40 else 9, "linewidths": 1.2}
    axes.scatter(at, np.full(len(at), 0.045), transform=axes.get_xaxis_transform(), zorder=4, **look)


def _legend(figure: Any, has_bands: bool, verdicts: set[str]) -> None:
    marks = {"largest amax of a run": Line2D([], [], color=LINE, marker="o", markersize=3.5)}
    if has_bands:
        marks["middle of the band"] = Line2D([], [], color=BAND, linewidth=1, linestyle=(0, (4, 2)))
    if "passed" in verdicts:
        marks["gate passed"] = Line2D([], [], color=PASS, marker="|", linestyle="none", markeredgewidth=1.4)
    if verdicts - {"passed"}:
        marks["gate failed"] = Line2D([], [], color=FAIL, marker="x", linestyle="none", markeredgewidth=1.4)
    figure.legend(marks.values(), marks.keys(), loc="outside upper left", ncols=4, borderaxespad=0.2)
