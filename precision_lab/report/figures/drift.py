"""Distance from the reference: over the steps (latents) and over the blocks (image stream)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from precision_lab.report.figures import style
from precision_lab.report.figures.style import Absent, Drawing, Look
from precision_lab.report.tables import Run, block_outputs, conditional, latents, spread

STEPS_TITLE = "Drift of the latents over the steps"
BLOCKS_TITLE = "Drift over the blocks"
MODES = {"free": "free-running\n(accumulated)", "teacher": "teacher-forced\n(local)"}
STEPS_CAPTION = (
    "Relative L2 distance of the latents from the reference's after each Euler step, log scale, lower is better. "
    "Free-running: each variant follows its own trajectory, so errors accumulate. Teacher-forced: each step starts "
    "from the reference's latents, which leaves the error made in it. Lines: median over prompts and seeds; bands: "
    "least to greatest. Crosses: steps whose latents are not finite in at least one generation. A distance of exactly "
    "0 has no place on a log scale."
)
BLOCKS_CAPTION = (
    "Relative L2 distance of the image stream from the reference's as it leaves each block, log scale, lower is "
    "better; conditional branch; first, middle and last step. Free-running: accumulated drift. Teacher-forced: each "
    "block is given the reference's input, which leaves the error made in it. Lines: median over prompts and seeds; "
    "bands: least to greatest. Crosses: not finite in at least one generation."
)


def draw_steps(run: Run) -> Drawing | Absent:
    rows = _against_reference(run)
    if rows is None:
        return Absent(STEPS_TITLE, "This run compared nothing with a reference.")
    rows = latents(rows)
    modes = [mode for mode in MODES if (rows["mode"] == mode).any()]
    if not modes:
        return Absent(STEPS_TITLE, "This run recorded no drift of the latents.")
    figure = style.new_figure(3.5)
    styles = style.looks(run.by_colour, run.reference)
    limits = _limits(rows, "step")
    last = rows["step"].max()
    for axes, mode in zip(figure.subplots(1, len(modes), sharey=True, squeeze=False)[0], modes, strict=True):
        _draw_lines(axes, rows[rows["mode"] == mode], "step", styles, limits)
        axes.set_ylabel(f"rel. L2, {MODES[mode]}")
        axes.set_xlabel("step")
        axes.set_xlim(-0.5 if last == 0 else -0.02 * last, last + (0.5 if last == 0 else 0.02 * last))
        style.index_axis(axes.xaxis, last, ticks=11)
        _label_sigmas(axes, run.sigmas)
    _legend(figure, run, rows)
    return Drawing("drift_steps", STEPS_TITLE, figure, STEPS_CAPTION + run.left_out)


def draw_blocks(run: Run) -> Drawing | Absent:
    rows = _against_reference(run)
    if rows is None:
        return Absent(BLOCKS_TITLE, "This run compared nothing with a reference.")
    rows = block_outputs(conditional(rows), "img")
    modes = [mode for mode in MODES if (rows["mode"] == mode).any()]
    if not modes:
        return Absent(BLOCKS_TITLE, "This run recorded no drift of block outputs.")
    every = np.unique(rows["step"])
    steps = np.unique(every[[0, len(every) // 2, -1]])
    rows = rows[rows["step"].isin(steps)]
    figure = style.new_figure(0.7 + 2.35 * len(modes))
    grid = figure.subplots(len(modes), len(steps), sharex=True, sharey=True, squeeze=False)
    styles = style.looks(run.by_colour, run.reference)
    low, high = _limits(rows, "block")
    for line, mode in zip(grid, modes, strict=True):
        line[0].set_ylabel(f"rel. L2, {MODES[mode]}")
        for axes, step in zip(line, steps, strict=True):
            own = rows[(rows["mode"] == mode) & (rows["step"] == step)]
            _draw_lines(axes, own, "block", styles, (low, high))
    for axes, step in zip(grid[0], steps, strict=True):
        sigma = f", σ = {run.sigmas[int(step)]:.2f}" if int(step) in run.sigmas else ""
        axes.set_title(f"Step {step:g}{sigma}")
    for axes in grid[-1]:
        axes.set_xlabel("block")
    style.index_axis(grid[0, 0].xaxis, rows["block"].max())
    _legend(figure, run, rows)
    return Drawing("drift_blocks", BLOCKS_TITLE, figure, BLOCKS_CAPTION + run.left_out)


def _against_reference(run: Run) -> pd.DataFrame | None:
    if run.drift is None:
        return None
    others = [name for name in run.shown if name != run.reference]
    rows = run.drift[(run.drift["reference"] == run.reference) & run.drift["variant"].isin(others)]
    return rows if len(rows) else None


def _limits(rows: pd.DataFrame, by: str) -> tuple[float, float]:
    """One range for all panels: of all values, with room for the crosses."""
    failing = rows.loc[rows["nonfinite"], "variant"].nunique()
    return style.log_range([rows["rel_l2"]], rows_of_crosses=failing)


def _draw_lines(
    axes: Axes, rows: pd.DataFrame, by: str, styles: Mapping[str, Look], limits: tuple[float, float]
) -> None:
    positive = rows[rows["rel_l2"] > 0]
    for name, own in positive.groupby("variant"):
        style.draw_band(axes, styles[str(name)], spread(own, by, "rel_l2"))
    bad = rows[rows["nonfinite"]]
    style.mark_nonfinite(axes, {str(name): np.unique(own[by]) for name, own in bad.groupby("variant")}, styles)
    style.log_axis(axes, *limits)


def _label_sigmas(axes: Axes, sigmas: Mapping[int, float]) -> None:
    ticks = [int(t) for t in axes.xaxis.get_major_locator()() if int(t) in sigmas]
    if not ticks:
        return
    upper = axes.secondary_xaxis("top")
    upper.set_xticks(ticks, [f"{sigmas[t]:.2f}" for t in ticks])
    upper.tick_params(length=0, labelcolor=style.MUTED, pad=1)
    upper.spines["top"].set_visible(False)
    upper.set_xlabel("noise level σ", color=style.MUTED)


def _legend(figure: Figure, run: Run, rows: pd.DataFrame) -> None:
    names = [name for name in run.variants if (rows["variant"] == name).any()]
    notes = {}
    for name in names:
        own = rows.loc[rows["variant"] == name]
        if own["nonfinite"].any():
            notes[name] = "not finite"
        elif (own["rel_l2"] == 0).all():
            notes[name] = "identical to the reference"
    style.legend(figure, names, style.looks(run.by_colour, run.reference), notes)
