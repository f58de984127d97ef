"""Runs beside each other: the growth of the main stream over the blocks, and where arrays differ from the base's."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from precision_lab.analysis.across import Across
from precision_lab.numerics.formats import FORMATS
from precision_lab.numerics.rounding_share import unit
from precision_lab.record.run import Run
from precision_lab.report.figures import labels, style
from precision_lab.report.figures.style import Absent, Drawing

GROWTH = "Growth over the blocks, by run"
DIFFERENCES = "Where arrays differ from the base"
MOST_PANELS = 4
MOST_LINES = 7
UNITS = ("bfloat16", "float16", "float32")
"""The formats whose unit of rounding is a line."""
_LEAST = 1e-9


def draw_growth(found: Across) -> Drawing | Absent:
    """The largest amax of each block's output on the main stream, a line for each run and a panel for each variant."""
    runs = found.runs
    lines = {name: _main_stream(run) for name, run in runs.items()}
    names = [v for v in found.runs[found.base].manifest.variants if all(v in own for own in lines.values() if own)]
    common = len(names)
    names = names[:MOST_PANELS]
    drawn = {label: own for label, own in lines.items() if any(name in own for name in names)}
    if not names or len(drawn) < 2:
        return Absent(GROWTH, "Fewer than two of the runs have recorded the blocks of a stream.")
    depths = {runs[label].layout.depth for label in drawn}
    figure = style.new_figure(0.5 + 2.3 * -(-len(names) // 2), wspace=0.04, hspace=0.05)
    grid = figure.subplots(-(-len(names) // 2), min(2, len(names)), squeeze=False)
    values = [own[name].to_numpy() for own in drawn.values() for name in names if name in own]
    limits = style.log_range(values)
    looks = style.looks(list(drawn), found.base)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, names, strict=False):
        for label, own in drawn.items():
            if name in own:
                series, look = own[name], looks[label]
                scale = max(runs[label].layout.depth - 1, 1) if len(depths) > 1 else 1
                x = series.index.to_numpy(float) / scale
                axes.plot(
                    x, series.to_numpy(), color=look.colour, linestyle=look.line, linewidth=look.width, alpha=look.alpha
                )
        style.log_axis(axes, *limits)
        axes.set_title(labels.shorten(name, 44))
        axes.set_xlabel("relative depth" if len(depths) > 1 else "block")
    for axes in grid[:, 0]:
        axes.set_ylabel("largest amax")
    style.legend(figure, list(drawn), looks, {found.base: "base"})
    caption = (
        "The largest magnitude at the output of each block on the main stream, over all cases, steps and branches of a "
        "run."
    )
    if any(_has_gap(own, name) for own in drawn.values() for name in names):
        caption += " A gap or a missing line: no finite value was recorded."
    if len(names) < common:
        caption += f" The first {len(names)} of the {common} variants that all runs have."
    if len(depths) > 1:
        caption += " The runs differ in depth, so the horizontal axis is the block over the number of blocks."
    return Drawing("growth", GROWTH, figure, caption)


def _has_gap(lines: dict[str, pd.Series], name: str) -> bool:
    """Whether the line of a variant is missing, or lacks a block between its ends."""
    if name not in lines:
        return True
    blocks = lines[name].dropna().index
    return len(blocks) == 0 or len(blocks) <= int(blocks.max()) - int(blocks.min())


def _main_stream(run: Run) -> dict[str, pd.Series]:
    layout = run.layout
    stream = layout.streams.get(layout.main_stream or "")
    port = stream.port if stream else "out"
    table = run.activations
    table = table[(table["component"] == layout.default) & (table["port"] == port)]
    table = table[[layout.is_block(layout.default, site) for site in table["site"]]]
    if not len(table) or "amax" not in table:
        return {}
    whole = table[(table["num_nan"].fillna(0) + table["num_inf"].fillna(0)).astype(int) == 0]
    grouped = whole.groupby(["variant", "block"])["amax"].max()
    return {str(name): grouped[name] for name in grouped.index.get_level_values(0).unique()}


def draw_differences(found: Across) -> Drawing | Absent:
    """The relative difference of each array over the order of execution, a panel for each run beside the base."""
    shown = {label: beside for label, beside in found.beside.items() if len(beside.rows)}
    shown = {label: beside for label, beside in shown.items() if not beside.rows["equal"].all()}
    if not shown:
        return Absent(DIFFERENCES, "No array that is compared moment by moment differs.")
    chosen = dict(list(shown.items())[:MOST_PANELS])
    figure = style.new_figure(0.5 + 2.4 * len(chosen), hspace=0.05)
    grid = figure.subplots(len(chosen), 1, squeeze=False)[:, 0]
    every = list(dict.fromkeys(str(v) for beside in chosen.values() for v in beside.rows["variant"].unique()))
    names = every[:MOST_LINES]
    looks = style.looks(names, found.runs[found.base].reference)
    for axes, (label, beside) in zip(grid, chosen.items(), strict=True):
        _draw_run(axes, beside.rows, names, looks)
        axes.set_title(labels.shorten(f"{label} against {found.base}", 80))
        axes.set_ylabel("relative difference")
    grid[-1].set_xlabel("order of execution")
    style.legend(figure, names, looks, {})
    drawn = pd.concat([beside.rows for beside in chosen.values()])
    drawn = drawn[drawn["variant"].isin(names)]
    caption = (
        "The larger relative difference of amax and rms at each array of a generation, in order of execution; the "
        "largest over the cases."
    )
    if (drawn["size"].astype(float) < _LEAST).any():
        caption += f" Differences below {_LEAST:g}, and equal arrays, are drawn there."
    top = max(axes.get_ylim()[1] for axes in grid)
    units = [name for name in UNITS if unit(FORMATS[name].name) < top]
    caption += f" Dashed: one unit of rounding of {', '.join(units)}." if units else ""
    if len(chosen) < len(shown):
        caption += f" The first {len(chosen)} of {len(shown)} runs that differ."
    if len(names) < len(every):
        caption += f" The first {len(names)} of {len(every)} variants."
    return Drawing("differences", DIFFERENCES, figure, caption)


def _draw_run(axes: Axes, rows: pd.DataFrame, names: list[str], looks: dict[str, style.Look]) -> None:
    top = _LEAST * 10
    for name in names:
        own = rows[rows["variant"] == name]
        if len(own):
            size = own["size"].astype(float).replace(np.inf, np.nan).groupby(own["order"].astype(int)).max()
            values = np.maximum(size.to_numpy(float), _LEAST)
            top = max(top, float(np.nanmax(values, initial=top)))
            axes.plot(size.index.to_numpy(), values, color=looks[name].colour, linewidth=0.8, alpha=0.85)
    for fmt in UNITS:
        axes.axhline(unit(FORMATS[fmt].name), color=style.MUTED, linewidth=0.7, linestyle=(0, (4, 3)))
    style.log_axis(axes, _LEAST / 2, top * 3)
