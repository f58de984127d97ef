"""Growth of activations with depth: amax of both residual streams over the block index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from precision_lab.numerics.formats import FORMATS
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Absent, Drawing, Look
from precision_lab.report.tables import Run, block_outputs, conditional, end_point, first_failure, spread

TITLE = "Growth of activations over the blocks"
STREAMS = {"img": "Image stream", "txt": "Text stream"}
CAPTION = (
    "Largest magnitude (amax) of each residual stream as it leaves a block, log scale; conditional branch. Lines: "
    "median over steps, prompts and seeds; bands: least to greatest; both of finite values only, so a variant that "
    "fails shows the steps before. Below: amax divided by the reference's at the same block, step, prompt and seed "
    "(1 = unchanged). Crosses: blocks that are not finite in the first step in which a generation fails. Limits of "
    "formats are lines or, beyond the axis, stated above it. Points beside the blocks: img_in on the left, "
    "norm_out and proj_out on the right."
)


def draw(run: Run) -> Drawing | Absent:
    if run.activations is None:
        return Absent(TITLE, "This run recorded no activations.")
    table = conditional(run.activations[run.activations["variant"].isin(run.shown)])
    streams = {name: rows for name in STREAMS if len(rows := block_outputs(table, name))}
    if not streams:
        return Absent(TITLE, "This run recorded no block outputs.")
    styles = style.looks(run.by_colour, run.reference)
    figure = style.new_figure(4.9)
    shape = {"height_ratios": [3.4, 1], "width_ratios": [1.25, 1][: len(streams)]}
    grid = figure.subplots(2, len(streams), sharex="col", squeeze=False, gridspec_kw=shape)
    for column, (stream, rows) in enumerate(streams.items()):
        upper, lower = grid[:, column]
        _draw_amax(upper, rows, styles, _end_points(table) if stream == "img" else {})
        upper.set_title(STREAMS[stream])
        _draw_ratio(lower, rows, run.reference, styles)
        style.index_axis(lower.xaxis, rows["block"].max())
        lower.set_xlabel("block")
    grid[0, 0].set_ylabel("amax of block output")
    grid[1, 0].set_ylabel("ratio to\nreference")
    notes = {name: "not finite" for name, own in table.groupby("variant") if own["nonfinite"].any()}
    style.legend(figure, run.shown, styles, {str(name): note for name, note in notes.items()})
    return Drawing("growth", TITLE, figure, CAPTION + run.left_out)


def _end_points(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {site: rows for site in ("img_in", "norm_out", "proj_out") if len(rows := end_point(table, site))}


def _draw_amax(
    axes: Axes, rows: pd.DataFrame, styles: Mapping[str, Look], end_points: Mapping[str, pd.DataFrame]
) -> None:
    for name, own in rows.groupby("variant"):
        summary = spread(own, "block", "amax").dropna()
        if len(summary):
            style.draw_band(axes, styles[str(name)], summary)
    failed = first_failure(rows)
    crosses = {str(name): np.unique(own["block"]) for name, own in failed.groupby("variant")}
    style.mark_nonfinite(axes, crosses, styles)
    limit = FORMATS["float16"].max
    near = [limit] if rows["amax"].max() > limit / 30 else []
    values = [rows["amax"], near, *(points["amax"] for points in end_points.values())]
    low, high = style.log_range(values, rows_of_crosses=len(crosses))
    style.log_axis(axes, low, high)
    last = rows["block"].max()
    pad = max(1.0, 0.05 * last)
    for site, points in end_points.items():
        _draw_end_point(
            axes, {"img_in": -pad, "norm_out": last + pad, "proj_out": last + 2 * pad}[site], points, styles
        )
    axes.set_xlim(-pad * (1.6 if end_points else 0.5), last + pad * (2.6 if end_points else 0.5))
    _draw_limits(axes, high)


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


def _draw_limits(axes: Axes, high: float) -> None:
    words: dict[str, Any] = {"fontsize": 9, "color": style.MUTED}
    limit = FORMATS["float16"].max
    beyond = "bfloat16, float32: 3.4e38"
    if limit < high:
        axes.axhline(limit, color=style.MUTED, linewidth=0.8, linestyle=(0, (5, 3)), zorder=1)
        at = (0.012, limit)
        place = axes.get_yaxis_transform()
        axes.annotate("float16 max 65504", at, (0, 3), xycoords=place, textcoords="offset points", **words)
    else:
        beyond = f"float16: 65504; {beyond}"
    axes.set_title(f"↑ max of {beyond}", loc="right", fontsize=9, fontweight="normal", color=style.MUTED)


def _draw_ratio(axes: Axes, rows: pd.DataFrame, reference: str, styles: Mapping[str, Look]) -> None:
    """amax over the reference's, paired within prompt, seed, branch and step."""
    key = ["prompt_id", "seed", "step", "block"]
    base = rows[rows["variant"] == reference].set_index(key)["amax"].rename("base")
    axes.axhline(1.0, color=style.REFERENCE, linewidth=2.4, alpha=0.5, zorder=1)
    axes.grid(axis="y")
    paired = rows[rows["variant"] != reference].join(base, on=key)
    paired["ratio"] = paired["amax"] / paired["base"]
    paired = paired[np.isfinite(paired["ratio"]) & (paired["ratio"] > 0)]
    for name, own in paired.groupby("variant"):
        style.draw_band(axes, styles[str(name)], spread(own, "block", "ratio"))
    if paired["ratio"].max() > 10 * paired["ratio"].min():
        style.log_axis(axes, *style.log_range([paired["ratio"]]))
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    if not len(paired):
        axes.set_ylim(0.9, 1.1)
