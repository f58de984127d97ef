"""Figures of the benchmark, in the style of the lab's reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from experiments.benchmarks.gpu.composition import CATEGORIES, compositions
from experiments.benchmarks.gpu.shapes import SHAPES
from experiments.benchmarks.gpu.store import rows
from experiments.benchmarks.gpu.summary import (
    FAST,
    PLAIN,
    Law,
    chosen,
    depth_samples,
    forward_results,
    line,
    power_law,
    probe_results,
)
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Drawing

COLOURS = {
    PLAIN: style.REFERENCE,
    FAST: style.PALETTE[0],
    "ours fast, cold": style.PALETTE[5],
    "ours compiled blocks": style.PALETTE[2],
    "mflux": style.PALETTE[4],
    "diffusers eager": style.PALETTE[3],
    "diffusers compiled": style.PALETTE[1],
}
ACTIVATION = style.PALETTE[5]
"""Of the one activation that a block has."""
CATEGORY_COLOURS = dict(
    zip(CATEGORIES, (*style.PALETTE[:5], ACTIVATION, ACTIVATION, style.PALETTE[6], "#999933", "#c8c8c8"), strict=True)
)


def forward(record: Mapping[str, Any]) -> Drawing | None:
    """Draws every sample of each arm, with one panel per size."""
    results = forward_results(record)
    if not results:
        return None
    sides = list(dict.fromkeys(result.side for result in results))
    most = max(sum(r.side == side for r in results) for side in sides)
    figure = style.new_figure(0.9 + 0.36 * most)
    for axes, side in zip(np.atleast_1d(figure.subplots(1, len(sides))), sides, strict=True):
        own = [result for result in results if result.side == side]
        for row, result in enumerate(own):
            colour = COLOURS.get(result.arm.removesuffix(", joint"), style.INK)
            milliseconds = 1e3 * np.array(result.seconds)
            axes.barh(row, 1e3 * result.median, height=0.62, color=colour, alpha=0.3, linewidth=0)
            spread = np.linspace(-0.2, 0.2, len(milliseconds)) if len(milliseconds) > 1 else [0]
            axes.scatter(milliseconds, row + np.asarray(spread), s=4, color=colour, linewidths=0, zorder=3)
            axes.annotate(
                f"{1e3 * result.median:.1f}",
                (float(milliseconds.max()), row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(range(len(own)), [result.arm for result in own])
        axes.set_ylim(len(own) - 0.4, -0.6)
        axes.set_xlim(0, 1.14e3 * max(max(result.seconds) for result in own))
        axes.set_xlabel("ms (lower is better)")
        axes.set_title(f"One forward at {side} x {side}")
        axes.grid(axis="x")
    caption = "Bars are medians, points all samples in the order taken from top to bottom."
    return Drawing("forward", "One forward pass", figure, caption)


def block(record: Mapping[str, Any]) -> Drawing | None:
    """Draws stacked bars of the parts of a block's time."""
    found = compositions(record)
    if not found:
        return None
    sides = list(dict.fromkeys(c.side for c in found))
    figure = style.new_figure(1.0 + 0.5 * len(found))
    for axes, side in zip(np.atleast_1d(figure.subplots(len(sides), 1)), sides, strict=True):
        own = [c for c in found if c.side == side]
        for row, composition in enumerate(own):
            left = 0.0
            for category, seconds in composition.categories.items():
                width = 1e6 * seconds
                axes.barh(row, width, left=left, height=0.68, color=CATEGORY_COLOURS[category], linewidth=0)
                left += width
            axes.annotate(
                f"{left:.0f}", (left, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9
            )
            if composition.whole is not None and composition.name != "ideal":
                whole = 1e6 * composition.whole
                axes.plot([whole, whole], [row - 0.42, row + 0.42], color=style.INK, linewidth=1.2)
        axes.set_yticks(range(len(own)), [c.name for c in own])
        axes.set_ylim(len(own) - 0.4, -0.6)
        axes.set_xlim(0, 1.1e6 * max(max(sum(c.categories.values()), c.whole or 0) for c in own))
        axes.set_title(f"One block at {side} x {side}")
        axes.set_xlabel("µs (lower is better)")
        axes.grid(axis="x")
    shown = [name for name in CATEGORIES if any(name in c.categories for c in found)]
    handles = [Patch(color=CATEGORY_COLOURS[name], linewidth=0) for name in shown]
    figure.legend(handles, shown, loc="outside upper left", ncols=5, handlelength=1.2, borderaxespad=0.2)
    caption = (
        "Pieces measured alone, as often as a block has them; the tick is the block as it runs in the model, and rest "
        "is what it takes beyond its pieces. Ideal: the fast block's pieces at the measured ceilings."
    )
    return Drawing("block", "Where a block's time goes", figure, caption)


def laws(record: Mapping[str, Any]) -> Drawing | None:
    """Draws the cost against the number of tokens, log-log, and against depth."""
    tokens, (depth, _) = list(rows(record, "tokens", "time")), depth_samples(record)
    if not tokens and not depth:
        return None
    figure = style.new_figure(3.5)
    panels = list(figure.subplots(1, 2, squeeze=False)[0])
    if tokens:
        _draw_tokens(panels.pop(0), {arm: power_law(chosen(tokens, arm=arm), "tokens") for arm in (PLAIN, FAST)})
    if depth:
        _draw_depth(
            panels.pop(0), {arm: line(chosen(depth, arm=arm), "depth") for arm in (PLAIN, FAST)}, depth[0]["side"]
        )
    for empty in panels:
        empty.set_axis_off()
    caption = (
        "Medians; lines are least-squares fits in each round, the median of their coefficients; over tokens of "
        "those sizes that are not bound by submitting operations."
    )
    return Drawing("laws", "Cost against tokens and depth", figure, caption)


def _draw_tokens(axes: Axes, fitted: Mapping[str, Law | None]) -> None:
    known = {arm: law for arm, law in fitted.items() if law is not None}
    for arm, law in known.items():
        x = np.array([value for value in law.x if value >= law.fitted_from])
        axes.plot(x, 1e3 * law.constant * x**law.slope.estimate, color=COLOURS[arm], linewidth=1.2, alpha=0.6)
        label = f"{arm}: exponent {law.slope.estimate:.2f}"
        axes.plot(law.x, 1e3 * np.array(law.median), "o", color=COLOURS[arm], markersize=4.5, label=label)
    axes.set_xscale("log")
    values = [1e3 * np.array(law.median) for law in known.values()]
    style.log_axis(axes, *style.log_range(values))
    x_all = [law.x for law in known.values()]
    low, high = style.log_range(x_all)
    axes.set_xlim(low, high)
    style.log_ticks(axes.xaxis, low, high)
    axes.set_xlabel("tokens, image and text")
    axes.set_ylabel("ms")
    axes.set_title("One forward against tokens")
    axes.legend(loc="upper left", handlelength=1.2)


def _draw_depth(axes: Axes, fitted: Mapping[str, Law | None], side: int) -> None:
    for arm, law in fitted.items():
        if law is None:
            continue
        x = np.array([0, max(law.x)])
        axes.plot(x, 1e3 * (law.constant + law.slope.estimate * x), color=COLOURS[arm], linewidth=1.2, alpha=0.6)
        label = f"{arm}: {1e3 * law.constant:.2f} + {1e3 * law.slope.estimate:.3f} a block"
        axes.plot(law.x, 1e3 * np.array(law.median), "o", color=COLOURS[arm], markersize=4.5, label=label)
    axes.set_xlim(0, None)
    axes.set_ylim(0, None)
    axes.grid(axis="y")
    axes.set_xlabel("blocks")
    axes.set_ylabel("ms")
    axes.set_title(f"One forward against depth, {side} x {side}")
    axes.legend(loc="upper left", handlelength=1.2)


def probes(record: Mapping[str, Any]) -> Drawing | None:
    """Draws the ratio of each observed model to the same model without observation."""
    results = probe_results(record)
    if not results:
        return None
    limits = SHAPES[record["parts"]["probes.0"]["environment"]["shape"]].targets.probes
    figure = style.new_figure(0.9 + 0.4 * len(results))
    axes = figure.subplots()
    axes.axvline(1, color=style.MUTED, linewidth=0.8)
    for row, result in enumerate(results):
        colour = COLOURS[result.arm]
        axes.plot([result.ratio.lo, result.ratio.hi], [row, row], color=colour, linewidth=2)
        axes.plot(result.ratio.estimate, row, "o", color=colour, markersize=5)
        limit = limits.get(result.probes)
        if limit is not None:
            axes.plot([limit, limit], [row - 0.35, row + 0.35], color=style.PALETTE[1], linewidth=1.4)
    labels = [f"{r.arm}, {r.probes}" + (f" ({r.arrays:.0f} arrays)" if r.arrays else "") for r in results]
    axes.set_yticks(range(len(results)), labels)
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.set_xlabel("time of a forward / the same untouched (lower is better)")
    axes.set_title(f"Range catalogue at {results[0].side} x {results[0].side}")
    caption = "Median of the ratio within a round, with its 95 % interval; the orange tick is the target."
    return Drawing("probes", "Cost of probes", figure, caption)
