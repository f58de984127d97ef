"""Drift as surfaces: accumulated and local drift of each stream over step and block, a row of panels a variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from precision_lab.report.figures import labels, panels, style
from precision_lab.report.figures.style import Absent, Drawing
from precision_lab.report.view import View, block_outputs, main_branch

TITLES = {
    ("free", "teacher"): "Where error accumulates and where it is made",
    ("free",): "Where error accumulates",
    ("teacher",): "Where error is made",
}
MOST_VARIANTS = 4
DECADES = 6  # an error this far under the greatest is drawn as if it were there
COLOURS = "magma"
LOST: dict[str, Any] = {"hatch": "/////", "facecolor": "#f4f4f4", "edgecolor": "#8c8c8c", "linewidth": 0.0}
IDENTICAL = "#d5dde6"
UNSEEN = "#ffffff"
MODES = {"free": "Accumulated", "teacher": "Local"}
MEANING = {
    "free": " Accumulated: free-running, each block receives the errors of all before it.",
    "teacher": " Local: teacher-forced, each block receives the reference's inputs, which leaves the error made in it.",
}

Column = tuple[str, str]  # mode and stream
Cells = npt.NDArray[np.float64]


class Surface(NamedTuple):
    """Steps down, blocks across. drift: median over the generations, NaN where unseen; lost: not finite in one."""

    drift: Cells
    lost: npt.NDArray[np.bool_]

    @property
    def positive(self) -> Cells:
        """The values that have a place on a log scale."""
        values = self.drift[~self.lost]
        return values[values > 0]


def draw(view: View) -> Drawing | Absent | None:
    """None for a run that compared no block with a reference, and for a subject without residual streams."""
    if view.against_reference is None or not view.layout.streams:
        return None
    rows = main_branch(view.against_reference, view.layout)
    streams = {stream: block_outputs(rows, view.layout, stream) for stream in view.layout.streams}
    columns = [(m, s) for m in MODES for s, own in streams.items() if (own["mode"] == m).any()]
    if not columns:
        return None
    title = TITLES[tuple(dict.fromkeys(mode for mode, _ in columns))]
    rows = pd.concat([own.assign(stream=stream) for stream, own in streams.items()])
    steps = {mode: np.unique(rows.loc[rows["mode"] == mode, "step"]).astype(int) for mode in MODES}
    blocks = np.unique(rows["block"]).astype(int)
    recorded = [name for name in view.variants if (rows["variant"] == name).any()]
    own = {name: rows[rows["variant"] == name] for name in recorded}

    def surface(name: str, column: Column) -> Surface:
        return _surface(own[name], column, steps[column[0]], blocks)

    shown = _telling(recorded, view.baseline, {name: surface(name, columns[0]) for name in recorded})
    drawn = {(name, column): surface(name, column) for name in shown for column in columns}
    positive = np.concatenate([surface.positive for surface in drawn.values()])
    if not positive.size and not any(surface.lost.any() for surface in drawn.values()):
        return Absent(title, "Every variant is identical to the reference at every block.")
    norm = _norm(positive)

    figure = style.new_figure(1.0 + 1.6 * len(shown), wspace=0.02, hspace=0.03)
    grid, scale = panels.with_scale(figure, len(shown), len(columns))
    names = labels.folded(shown, 16)
    styles = style.looks(view.by_colour, view.reference)
    for line, name in zip(grid, shown, strict=True):
        for axes, column in zip(line, columns, strict=True):
            _draw_cells(axes, drawn[name, column], norm)
            for gap in np.flatnonzero(np.diff(steps[column[0]]) > 1):
                axes.axhline(gap + 0.5, color="white", linewidth=2.5)
            for gap in np.flatnonzero(np.diff(blocks) > 1):
                axes.axvline(gap + 0.5, color="white", linewidth=2.5)
        look: dict[str, Any] = {
            "color": styles[name].ink,
            "weight": "bold",
            "rotation": 90,
            "ha": "center",
            "va": "center",
        }
        left: dict[str, Any] = {
            "xy": (0, 0.5),
            "xycoords": "axes fraction",
            "textcoords": "offset points",
            "xytext": (-38, 0),
        }
        line[0].annotate(names[name], **left, **look)
    _label(grid, columns, steps, blocks, view)
    if positive.size:
        extend = "min" if positive.min() < (norm.vmin or 0) else "neither"
        panels.draw_scale(scale, norm, COLOURS, "rel. L2, lower is better", extend=extend)
    else:
        scale.set_axis_off()
    _legend(figure, list(drawn.values()))
    return Drawing("drift_surface", title, figure, _caption(view, columns, shown, recorded, steps, blocks))


def _caption(
    view: View,
    columns: Sequence[Column],
    shown: Sequence[str],
    recorded: Sequence[str],
    steps: Mapping[str, npt.NDArray[np.int_]],
    blocks: npt.NDArray[np.int_],
) -> str:
    titles = [f"the {view.layout.streams[stream].title}" for stream in dict.fromkeys(s for _, s in columns)]
    modes = dict.fromkeys(mode for mode, _ in columns)
    meaning = "".join(MEANING[mode] for mode in modes)
    gaps = any((np.diff(numbers) > 1).any() for numbers in (*(steps[mode] for mode in modes), blocks))
    white = " White lines: steps or blocks in between were left out." if gaps else ""
    named = " and ".join(filter(None, (", ".join(titles[:-1]), titles[-1])))
    level = f", {view.layout.level} on the right" if view.levels else ""
    some = (
        f" Drawn of {len(recorded)} variants: the baseline, those with the least and the greatest accumulated drift, "
        "and one that is not finite where there is one."
        if len(shown) < len(recorded)
        else ""
    )
    return (
        f"Relative L2 distance of {named} from the reference's after each block (horizontal) at each step "
        f"(downwards{level}); log colour scale, one for all panels, lower is better{view.in_branch}; median over "
        f"prompts and seeds.{meaning}{white}{some}"
    )


def _surface(rows: pd.DataFrame, column: Column, steps: npt.NDArray[np.int_], blocks: npt.NDArray[np.int_]) -> Surface:
    mode, stream = column
    own = rows[(rows["mode"] == mode) & (rows["stream"] == stream)]
    cells = own.groupby(["step", "block"]).agg(drift=("rel_l2", "median"), lost=("nonfinite", "any"))
    whole = cells.reindex(pd.MultiIndex.from_product([steps, blocks]))
    drift, lost = whole["drift"].to_numpy(float), whole["lost"].eq(True).to_numpy(bool)
    return Surface(drift.reshape(len(steps), -1), lost.reshape(len(steps), -1))


def _telling(names: Sequence[str], baseline: str | None, surfaces: Mapping[str, Surface]) -> list[str]:
    """At most MOST_VARIANTS, in their order: all, or the baseline, the least and greatest drift, and a lost one."""
    if len(names) <= MOST_VARIANTS:
        return list(names)
    medians = {name: float(np.median(s.positive)) for name, s in surfaces.items() if s.positive.size}
    whole = sorted((n for n in medians if not surfaces[n].lost.any()), key=lambda name: medians[name])
    lost = [name for name in names if surfaces[name].lost.any()]
    chosen = {name for name in (baseline, *whole[:1], *whole[-1:], *lost[:1]) if name in names}
    others = [name for name in reversed(whole) if name not in chosen]
    chosen |= set(others[: MOST_VARIANTS - len(chosen)])
    return [name for name in names if name in chosen]


def _norm(positive: Cells) -> LogNorm:
    if not positive.size:
        return LogNorm(0.1, 1)
    high = positive.max()
    return LogNorm(max(positive.min(), high * 10.0**-DECADES) / 1.0001, high * 1.0001)


def _draw_cells(axes: Axes, surface: Surface, norm: LogNorm) -> None:
    height, width = surface.drift.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    identical, unseen = surface.drift == 0, np.isnan(surface.drift)
    colours = np.asarray(colormaps[COLOURS](norm(np.where(identical | unseen, 1.0, surface.drift))))
    colours[identical], colours[unseen] = to_rgba(IDENTICAL), to_rgba(UNSEEN)
    colours[surface.lost] = 0  # transparent: the hatching lies beneath
    if surface.lost.any():
        axes.add_patch(Rectangle((-0.5, -0.5), width, height, zorder=0, **LOST))
    axes.imshow(colours, aspect="auto", interpolation="none", extent=extent, zorder=1)
    note = "not measured" if (unseen & ~surface.lost).all() else "identical" if identical.all() else ""
    if note:
        axes.text(0.5, 0.5, note, transform=axes.transAxes, ha="center", va="center", color=style.MUTED)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _label(
    grid: npt.NDArray[np.object_],
    columns: Sequence[Column],
    steps: Mapping[str, npt.NDArray[np.int_]],
    blocks: npt.NDArray[np.int_],
    view: View,
) -> None:
    levels = view.levels
    for at, (mode, stream) in enumerate(columns):
        own = steps[mode]
        is_first = at == 0 or columns[at - 1][0] != mode
        is_last = at + 1 == len(columns) or columns[at + 1][0] != mode
        grid[0, at].set_title(f"{MODES[mode]}\n{labels.fold(view.layout.streams[stream].title, 16)}")
        grid[-1, at].set_xlabel("block")
        for axes in grid[:, at]:
            style.index_axis(axes.xaxis, len(blocks) - 1, ticks=5)
            columns_shown = [int(tick) for tick in axes.xaxis.get_major_locator()()]
            axes.set_xticks(columns_shown, [f"{blocks[tick]}" for tick in columns_shown])
            style.index_axis(axes.yaxis, len(own) - 1, ticks=5)
            ticks = [int(tick) for tick in axes.yaxis.get_major_locator()()]
            axes.set_yticks(ticks, [f"{own[tick]}" for tick in ticks])
            if is_last and levels:
                beside = {tick: f"{levels[own[tick]]:.2f}" for tick in ticks if own[tick] in levels}
                panels.label_beside(axes, "right", beside, view.symbol)
            if is_first:
                axes.set_ylabel("step")


def _legend(figure: Figure, surfaces: Sequence[Surface]) -> None:
    """Entries for cells that have no colour of the scale, where there are such cells."""
    entries = []
    if any(surface.lost.any() for surface in surfaces):
        entries.append(Patch(label="not finite in at least one generation", **LOST))
    if any((surface.drift == 0).any() for surface in surfaces):
        entries.append(Patch(label="identical to the reference", facecolor=IDENTICAL, linewidth=0))
    if entries:
        figure.legend(handles=entries, loc="outside lower left", ncols=2, borderaxespad=0.2)
