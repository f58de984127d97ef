"""Distance from the reference: of the result over the steps, and of the main stream over the blocks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from precision_lab.report.figures import panels, style
from precision_lab.report.figures.style import Absent, Drawing, Look
from precision_lab.report.view import View, block_outputs, main_branch, results, spread

BLOCKS_TITLE = "Drift over the blocks"
MODES = {"free": "free-running\n(accumulated)", "teacher": "teacher-forced\n(local)"}
STEPS_MEANING = {
    "free": "Free-running: each variant follows its own trajectory, so errors accumulate.",
    "teacher": "Teacher-forced: each step starts from the reference's state, which leaves the error made in it.",
}
BLOCKS_MEANING = {
    "free": "Free-running: accumulated drift.",
    "teacher": "Teacher-forced: each block receives the reference's input, which leaves the error made in it.",
}
BANDS = "Lines: median over prompts and seeds; bands: least to greatest."


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
    caption = _caption(measured, rows, STEPS_MEANING, f"steps with non-finite {result}", "rel_l2")
    return Drawing("drift_steps", title, figure, caption + view.left_out_of_drift)


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
    caption = _caption(measured, rows, STEPS_MEANING, f"steps with non-finite {result}", "kl") + view.left_out_of_drift
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
    measured = (
        f"Relative L2 distance of the {view.layout.streams[stream].title} from the reference's as it leaves each block"
    )
    caption = _caption(measured, rows, BLOCKS_MEANING, "blocks that are not finite", "rel_l2", view.in_branch)
    return Drawing("drift_blocks", BLOCKS_TITLE, figure, caption + view.left_out_of_drift)


def _caption(
    measured: str, rows: pd.DataFrame, meaning: Mapping[str, str], lost: str, value: str, branch: str = ""
) -> str:
    """What the panels drawn show, and nothing on what none of them has. lost: what a cross marks."""
    parts = [f"{measured}, log scale, lower is better{branch}."]
    parts += [text for mode, text in meaning.items() if (rows["mode"] == mode).any()]
    if meaning is BLOCKS_MEANING:
        parts.append(f"Panels: {_listed(np.unique(rows['step']))}.")
    parts.append(BANDS)
    by = "block" if meaning is BLOCKS_MEANING else "step"
    if any(_has_gaps(own[by]) for _, own in rows.groupby(["variant", "mode"])):
        parts.append(f"A gap or a single point: the {by}s beside it were not measured.")
    if rows["nonfinite"].any():
        parts.append(f"Crosses: {lost} in at least one generation.")
    if (rows[value] == 0).any():
        parts.append("A value of exactly 0 has no place on a log scale.")
    return " ".join(parts)


def _has_gaps(numbers: pd.Series) -> bool:
    return bool((np.diff(np.unique(numbers.to_numpy(float))) > 1).any())


def _listed(steps: np.ndarray) -> str:
    """`step 0`, or `steps 0, 3 and 5`."""
    words = [f"{step:g}" for step in steps]
    return f"step {words[0]}" if len(words) == 1 else f"steps {', '.join(words[:-1])} and {words[-1]}"


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
        ticks = [int(tick) for tick in axes.xaxis.get_major_locator()() if int(tick) in view.levels]
        if ticks:
            panels.label_beside(axes, "top", {t: f"{view.levels[t]:.2f}" for t in ticks}, view.layout.level)
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
