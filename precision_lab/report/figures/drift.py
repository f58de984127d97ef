"""Distance from the reference: of the result over the steps, and of the main stream over the blocks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from precision_lab.report.figures import style
from precision_lab.report.figures.style import Absent, Drawing, Look
from precision_lab.report.view import View, block_outputs, main_branch, results, spread

BLOCKS_TITLE = "Drift over the blocks"
MODES = {"free": "free-running\n(accumulated)", "teacher": "teacher-forced\n(local)"}
STEPS_CAPTION = (
    "{measured}, log scale, lower is better. Free-running: each variant follows its own trajectory, so errors "
    "accumulate. Teacher-forced: each step starts from the reference's state, which leaves the error made in it. "
    "Lines: median over prompts and seeds; bands: least to greatest. Crosses: steps with non-finite {result} in at "
    "least one generation. A value of exactly 0 has no place on a log scale."
)
BLOCKS_CAPTION = (
    "Relative L2 distance of the {stream} from the reference's as it leaves each block, log scale, lower is "
    "better{branch}; first, middle and last step. Free-running: accumulated drift. Teacher-forced: each block receives "
    "the reference's input, which leaves the error made in it. Lines: median over prompts and seeds; bands: least to "
    "greatest. Crosses: blocks that are not finite in at least one generation."
)


def draw_steps(view: View) -> Drawing | Absent:
    result = view.layout.result.title
    title = f"Drift of the {result} over the steps"
    rows = _against_reference(view)
    if rows is None:
        return Absent(title, "This run compared nothing with a reference.")
    rows = results(rows, view.layout)
    if not len(rows):
        return Absent(title, f"This run recorded no drift of the {result}.")
    measured = f"Relative L2 distance of the {result} from the reference's after each step"
    figure = _draw_steps(view, rows, "rel_l2", "rel. L2")
    return Drawing("drift_steps", title, figure, STEPS_CAPTION.format(measured=measured, result=result) + view.left_out)


def draw_divergence(view: View) -> Drawing | None:
    """None where the result is no distribution, or no divergence was recorded."""
    rows = _against_reference(view)
    if rows is None or not view.layout.result.distribution:
        return None
    rows = results(rows, view.layout)
    if not rows["kl"].notna().any():
        return None
    result = view.layout.result.title
    measured = (
        f"Kullback-Leibler divergence from the reference's distribution to the variant's, of the {result} after each "
        "step, in nats"
    )
    caption = STEPS_CAPTION.format(measured=measured, result=result) + view.left_out
    title = f"KL divergence of the {result} over the steps"
    return Drawing("divergence_steps", title, _draw_steps(view, rows, "kl", "KL in nats"), caption)


def draw_blocks(view: View) -> Drawing | Absent | None:
    """None for a subject without residual streams."""
    stream = view.layout.main_stream
    if stream is None:
        return None
    rows = _against_reference(view)
    if rows is None:
        return Absent(BLOCKS_TITLE, "This run compared nothing with a reference.")
    rows = block_outputs(main_branch(rows, view.layout), view.layout, stream)
    modes = [mode for mode in MODES if (rows["mode"] == mode).any()]
    if not modes:
        return Absent(BLOCKS_TITLE, "This run recorded no drift of block outputs.")
    every = np.unique(rows["step"])
    steps = np.unique(every[[0, len(every) // 2, -1]])
    rows = rows[rows["step"].isin(steps)]
    figure = style.new_figure(0.7 + 2.35 * len(modes))
    grid = figure.subplots(len(modes), len(steps), sharex=True, sharey=True, squeeze=False)
    styles = style.looks(view.by_colour, view.reference)
    limits = _limits(rows, "rel_l2")
    for line, mode in zip(grid, modes, strict=True):
        line[0].set_ylabel(f"rel. L2, {MODES[mode]}")
        for axes, step in zip(line, steps, strict=True):
            own = rows[(rows["mode"] == mode) & (rows["step"] == step)]
            _draw_lines(axes, own, "block", "rel_l2", styles, limits)
    levels = view.levels
    for axes, step in zip(grid[0], steps, strict=True):
        level = f", {view.symbol} = {levels[int(step)]:.2f}" if int(step) in levels else ""
        axes.set_title(f"Step {step:g}{level}")
    for axes in grid[-1]:
        axes.set_xlabel("block")
    style.index_axis(grid[0, 0].xaxis, rows["block"].max())
    _legend(figure, view, rows, "rel_l2")
    caption = BLOCKS_CAPTION.format(stream=view.layout.streams[stream].title, branch=view.in_branch)
    return Drawing("drift_blocks", BLOCKS_TITLE, figure, caption + view.left_out)


def _against_reference(view: View) -> pd.DataFrame | None:
    if view.against_reference is None:
        return None
    rows = view.against_reference[view.against_reference["variant"].isin(view.shown)]
    return rows if len(rows) else None


def _draw_steps(view: View, rows: pd.DataFrame, value: str, label: str) -> Figure:
    """A panel for each mode: the column `value` of the result over the steps."""
    modes = [mode for mode in MODES if (rows["mode"] == mode).any()]
    figure = style.new_figure(3.5)
    styles = style.looks(view.by_colour, view.reference)
    limits = _limits(rows, value)
    last = rows["step"].max()
    for axes, mode in zip(figure.subplots(1, len(modes), sharey=True, squeeze=False)[0], modes, strict=True):
        _draw_lines(axes, rows[rows["mode"] == mode], "step", value, styles, limits)
        axes.set_ylabel(f"{label}, {MODES[mode]}")
        axes.set_xlabel("step")
        axes.set_xlim(-0.5 if last == 0 else -0.02 * last, last + (0.5 if last == 0 else 0.02 * last))
        style.index_axis(axes.xaxis, last, ticks=11)
        _label_levels(axes, view.levels, view.layout.level)
    _legend(figure, view, rows, value)
    return figure


def _limits(rows: pd.DataFrame, value: str) -> tuple[float, float]:
    """One range for all panels: of all values, with room for the crosses."""
    failing = rows.loc[rows["nonfinite"], "variant"].nunique()
    return style.log_range([rows[value]], rows_of_crosses=failing)


def _draw_lines(
    axes: Axes, rows: pd.DataFrame, by: str, value: str, styles: Mapping[str, Look], limits: tuple[float, float]
) -> None:
    positive = rows[rows[value] > 0]
    for name, own in positive.groupby("variant"):
        style.draw_band(axes, styles[str(name)], spread(own, by, value))
    bad = rows[rows["nonfinite"]]
    style.mark_nonfinite(axes, {str(name): np.unique(own[by]) for name, own in bad.groupby("variant")}, styles)
    style.log_axis(axes, *limits)


def _label_levels(axes: Axes, levels: Mapping[int, float], name: str) -> None:
    ticks = [int(t) for t in axes.xaxis.get_major_locator()() if int(t) in levels]
    if not ticks:
        return
    upper = axes.secondary_xaxis("top")
    upper.set_xticks(ticks, [f"{levels[t]:.2f}" for t in ticks])
    upper.tick_params(length=0, labelcolor=style.MUTED, pad=1)
    upper.spines["top"].set_visible(False)
    upper.set_xlabel(name, color=style.MUTED)


def _legend(figure: Figure, view: View, rows: pd.DataFrame, value: str) -> None:
    names = [name for name in view.variants if (rows["variant"] == name).any()]
    notes = {}
    for name in names:
        own = rows.loc[rows["variant"] == name]
        if own["nonfinite"].any():
            notes[name] = "not finite"
        elif (own["rel_l2"] == 0).all():
            notes[name] = "identical to the reference"
        elif (own[value] == 0).all():
            notes[name] = "0 throughout"
    style.legend(figure, names, style.looks(view.by_colour, view.reference), notes)
