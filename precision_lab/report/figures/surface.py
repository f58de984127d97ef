"""Magnitude as a surface: log10 amax of the main stream over step and block, one panel for each variant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from precision_lab.numerics.formats import FORMATS
from precision_lab.report.figures import labels, panels, style
from precision_lab.report.figures.style import Absent, Drawing
from precision_lab.report.view import View, block_outputs, main_branch

TITLE = "Magnitude over step and block"
COLOURS = "viridis"
CAPTION = (
    "log10 of the largest magnitude of the {stream} as it leaves each block (horizontal) at each step "
    "(downwards{level}){branch}; greatest over prompts and seeds, one colour scale for "
    "all panels."
)
LIMIT = float(np.log10(FORMATS["float16"].max))


def draw(view: View) -> Drawing | Absent | None:
    """None for a subject without residual streams."""
    stream = view.layout.main_stream
    if stream is None:
        return None
    if view.activations is None:
        return Absent(TITLE, "This run recorded no activations.")
    rows = block_outputs(main_branch(view.activations, view.layout), view.layout, stream)
    shown = [name for name in view.shown if (rows["variant"] == name).any()]
    if not shown:
        return Absent(TITLE, f"This run recorded no block outputs of the {view.layout.streams[stream].title}.")
    surfaces = {name: _surface(rows[rows["variant"] == name]) for name in shown}
    finite = np.concatenate([surface.to_numpy().ravel() for surface in surfaces.values()])
    finite = finite[np.isfinite(finite)]
    norm = Normalize(finite.min(), max(finite.max(), finite.min() + 0.1)) if finite.size else Normalize(0, 1)

    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    figure = style.new_figure(0.5 + 2.1 * lines, wspace=0.03)
    grid, scale = panels.with_scale(figure, lines, columns, sharex=True, sharey=True)
    styles = style.looks(view.by_colour, view.reference)
    titles = labels.distinct(shown, 40)
    for axes, (name, surface) in zip(grid.flat, surfaces.items(), strict=False):
        _draw_surface(axes, surface, norm)
        axes.set_title(titles[name], color=styles[name].ink)
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    _label(grid, rows, view)
    panels.draw_scale(scale, norm, COLOURS, "log₁₀ amax")
    crossed = norm.vmin is not None and norm.vmax is not None and norm.vmin < LIMIT < norm.vmax
    if crossed:
        scale.axhline(LIMIT, color="white", linewidth=1.4)
    level = f", {view.layout.level} on the right" if view.levels else ""
    caption = CAPTION.format(stream=view.layout.streams[stream].title, level=level, branch=view.in_branch)
    if crossed:
        caption += " White line: the fp16 limit 65504."
    if any(surface.isna().to_numpy().any() for surface in surfaces.values()):
        caption += " Hatched: not finite in at least one generation."
    return Drawing("surface", TITLE, figure, caption + view.selection)


def _surface(rows: pd.DataFrame) -> pd.DataFrame:
    """log10 amax, steps down and blocks across; NaN where any prompt or seed is not finite."""
    worst = rows.assign(amax=rows["amax"].fillna(np.inf))  # so that one lost value decides its cell
    amax = worst.pivot_table(index="step", columns="block", values="amax", aggfunc="max")
    return amax.where((amax > 0) & np.isfinite(amax)).map(np.log10)


def _draw_surface(axes: Axes, surface: pd.DataFrame, norm: Normalize) -> None:
    steps, blocks = surface.index.to_numpy(), surface.columns.to_numpy()
    left, right = blocks.min() - 0.5, blocks.max() + 0.5
    top, bottom = steps.min() - 0.5, steps.max() + 0.5
    hatch: dict[str, Any] = {"hatch": "////", "facecolor": "#f1f1f1", "edgecolor": "#b5b5b5", "linewidth": 0}
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, zorder=0, **hatch))
    whole = surface.reindex(index=range(int(steps.min()), int(steps.max()) + 1))
    whole = whole.reindex(columns=range(int(blocks.min()), int(blocks.max()) + 1))
    values = np.ma.masked_invalid(whole.to_numpy())
    place = (left, right, bottom, top)
    axes.imshow(values, norm=norm, cmap=COLOURS, aspect="auto", interpolation="none", extent=place, zorder=1)
    if min(values.shape) > 1 and values.count() and values.min() < LIMIT < values.max():
        axes.contour(whole.columns, whole.index, values, levels=[LIMIT], colors="white", linewidths=1.2)
    axes.set(xlim=(left, right), ylim=(bottom, top))
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _label(grid: np.ndarray, rows: pd.DataFrame, view: View) -> None:
    last = rows["step"].max()
    style.index_axis(grid[0, 0].xaxis, rows["block"].max())
    style.index_axis(grid[0, 0].yaxis, last, ticks=5)
    for axes in grid[:, 0]:
        axes.set_ylabel("step")
    panels.label_every_panel(axes for axes in grid.flat if axes.axison)
    for column in grid.T:
        [axes for axes in column if axes.axison][-1].set_xlabel("block")
    levels = view.levels
    ticks = [int(t) for t in grid[0, 0].yaxis.get_major_locator()() if int(t) in levels]
    if not ticks:
        return
    for axes in (axes for axes in grid[:, -1] if axes.axison):
        panels.label_beside(axes, "right", {tick: f"{levels[tick]:.2f}" for tick in ticks}, view.symbol)
