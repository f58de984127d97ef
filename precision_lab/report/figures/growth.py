"""Growth of activations with depth: amax of each residual stream over the block index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from precision_lab.numerics.formats import FORMATS
from precision_lab.record.layout import Layout
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Absent, Drawing, Look
from precision_lab.report.view import View, block_outputs, first_failure, heading, main_branch, outputs, spread

TITLE = "Growth of activations over the blocks"
MOST_WIDE = 2
"""Up to so many panels are wide enough for their title and the limits of formats in one line."""

CAPTION = (
    "Largest magnitude (amax) of each residual stream as it leaves a block, log scale{branch}. Lines: median over "
    "steps, prompts and seeds; bands: least to greatest{lost}. Limits of formats are lines or, beyond the axis, stated "
    "above it.{ratio}{beside}"
)
LOST = (
    "; both of finite values only, so a variant that fails is drawn over the steps before its failure. Crosses: blocks "
    "that are not finite in the first step in which a generation fails"
)
RATIO = " Below: amax divided by the reference's at the same block, step, prompt and seed (1 = unchanged)."


def draw(view: View) -> Drawing | Absent:
    layout = view.layout
    if not layout.streams:
        return Absent(TITLE, "The layout of this model names no residual streams.")
    if view.activations is None:
        return Absent(TITLE, "This run recorded no activations.")
    table = main_branch(view.activations[view.activations["variant"].isin(view.shown)], layout)
    streams = {name: rows for name in layout.streams if len(rows := block_outputs(table, layout, name))}
    if not streams:
        return Absent(TITLE, "This run recorded no block outputs.")
    styles = style.looks(view.by_colour, view.reference)
    ratios = {name: _ratios(rows, view.reference) for name, rows in streams.items()}
    has_ratio = any(own.size for own in ratios.values())
    beside = _beside(table, view)
    figure = style.new_figure(4.9 if has_ratio else 3.9)
    heights = [3.4, 1] if has_ratio else [1]
    shape = {"height_ratios": heights, "width_ratios": [1.25, *[1] * (len(streams) - 1)]}
    grid = figure.subplots(len(heights), len(streams), sharex="col", squeeze=False, gridspec_kw=shape)
    for column, (stream, rows) in enumerate(streams.items()):
        upper, lower = grid[0, column], grid[-1, column]
        _draw_amax(upper, rows, styles, beside if stream == layout.main_stream else {})
        _draw_limits(upper, heading(layout.streams[stream]), narrow=len(streams) > MOST_WIDE)
        if has_ratio:
            _draw_ratio(lower, ratios[stream], styles)
        style.index_axis(lower.xaxis, rows["block"].max())
        lower.set_xlabel("block")
    grid[0, 0].set_ylabel("amax of block output")
    if has_ratio:
        grid[1, 0].set_ylabel("ratio to\nreference")
    notes = {name: "not finite" for name, own in table.groupby("variant") if own["nonfinite"].any()}
    style.legend(figure, view.shown, styles, {str(name): note for name, note in notes.items()})
    return Drawing("growth", TITLE, figure, _caption(view, bool(notes), has_ratio, beside) + view.left_out)


def _caption(view: View, lost: bool, has_ratio: bool, beside: Mapping[int, pd.DataFrame]) -> str:
    drawn = {place: str(rows["site"].iloc[0]) for place, rows in beside.items()}
    entries, exits = ([site for place, site in drawn.items() if (place < 0) == is_entry] for is_entry in (True, False))
    sides = [(entries, "on the left"), (exits, "on the right")]
    stated = "; ".join(f"{' and '.join(sites)} {side}" for sites, side in sides if sites)
    return CAPTION.format(
        branch=view.in_branch,
        lost=LOST if lost else "",
        ratio=RATIO if has_ratio else "",
        beside=f" Points beside the blocks: {stated}." if stated else "",
    )


def _entry(layout: Layout) -> str | None:
    """The module that the main stream begins with."""
    return layout.streams[layout.main_stream].entry if layout.main_stream else None


def _beside(table: pd.DataFrame, view: View) -> dict[int, pd.DataFrame]:
    """The outputs to draw beside the blocks, by their place: -1 for the entry, 1, 2, ... for the exits."""
    places = {-1: _entry(view.layout), **dict(enumerate(view.layout.exits, start=1))}
    found = {place: outputs(table, view.layout, site) for place, site in places.items() if site}
    return {place: rows for place, rows in found.items() if len(rows)}


def _draw_amax(axes: Axes, rows: pd.DataFrame, styles: Mapping[str, Look], beside: Mapping[int, pd.DataFrame]) -> None:
    """beside: as `_beside` gives it."""
    for name, own in rows.groupby("variant"):
        summary = spread(own, "block", "amax").dropna()
        if len(summary):
            style.draw_band(axes, styles[str(name)], summary)
    failed = first_failure(rows)
    crosses = {str(name): np.unique(own["block"]) for name, own in failed.groupby("variant")}
    style.mark_nonfinite(axes, crosses, styles)
    limit = FORMATS["float16"].max
    near = [limit] if rows["amax"].max() > limit / 30 else []
    values = [rows["amax"], near, *(points["amax"] for points in beside.values())]
    low, high = style.log_range(values, rows_of_crosses=len(crosses))
    style.log_axis(axes, low, high)
    last = rows["block"].max()
    pad = max(1.0, 0.05 * last)
    for place, points in beside.items():
        _draw_end_point(axes, -pad if place < 0 else last + place * pad, points, styles)
    ends = (1.6, max(0, *beside) + 0.6) if beside else (0.5, 0.5)
    axes.set_xlim(-pad * ends[0], last + pad * ends[1])


def _draw_end_point(axes: Axes, x: float, points: pd.DataFrame, styles: Mapping[str, Look]) -> None:
    summary = spread(points, "variant", "amax").dropna()
    if not len(summary):
        return
    for name, row in summary.iterrows():
        look = styles[str(name)]
        size = 5 if look.width > 2 else 3.2
        axes.plot(x, row["median"], "o", color=look.colour, markersize=size, alpha=look.alpha, zorder=look.order)
    words: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "bottom", "fontsize": 9, "color": style.MUTED}
    axes.annotate(str(points["site"].iloc[0]), (x, summary["max"].max()), (0, 6), textcoords="offset points", **words)


def _draw_limits(axes: Axes, title: str, narrow: bool) -> None:
    """The title of a panel, and the limits of formats: as lines, or above it where they are beyond the axis.

    narrow: there is no room for both in one line.
    """
    words: dict[str, Any] = {"fontsize": 9, "color": style.MUTED}
    limit = FORMATS["float16"].max
    beyond = ["bfloat16, float32: 3.4e38"]
    if limit < axes.get_ylim()[1]:
        axes.axhline(limit, color=style.MUTED, linewidth=0.8, linestyle=(0, (5, 3)), zorder=1)
        at = (0.012, limit)
        place = axes.get_yaxis_transform()
        axes.annotate("float16 max 65504", at, (0, 3), xycoords=place, textcoords="offset points", **words)
    else:
        beyond.insert(0, "float16: 65504")
    lines = len(beyond) if narrow else 0
    axes.set_title(title + "\n" * lines)
    stated = f"↑ max of {'; '.join(beyond)}".replace("; ", ";\n" if narrow else "; ")
    axes.set_title(stated, loc="right", fontweight="normal", **words)


def _ratios(rows: pd.DataFrame, reference: str) -> pd.DataFrame:
    """The rows with a `ratio`: amax over the reference's, paired within prompt, seed, branch and step."""
    key = ["prompt_id", "seed", "step", "block"]
    base = rows[rows["variant"] == reference].set_index(key)["amax"].rename("base")
    paired = rows[rows["variant"] != reference].join(base, on=key)
    paired["ratio"] = paired["amax"] / paired["base"]
    return paired[np.isfinite(paired["ratio"]) & (paired["ratio"] > 0)]


def _draw_ratio(axes: Axes, paired: pd.DataFrame, styles: Mapping[str, Look]) -> None:
    axes.axhline(1.0, color=style.REFERENCE, linewidth=2.4, alpha=0.5, zorder=1)
    axes.grid(axis="y")
    for name, own in paired.groupby("variant"):
        style.draw_band(axes, styles[str(name)], spread(own, "block", "ratio"))
    if paired["ratio"].max() > 10 * paired["ratio"].min():
        style.log_axis(axes, *style.log_range([paired["ratio"]]))
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    if not len(paired):
        axes.set_ylim(0.9, 1.1)
