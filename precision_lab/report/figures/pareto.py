"""Drift against cost, one point for each variant of a sweep's jobs, with the variants that no other dominates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from precision_lab.numerics.pareto import nondominated
from precision_lab.report.figures import labels, style
from precision_lab.report.figures.style import Absent, Drawing
from precision_lab.report.wording import UNITS, exponent_of

TITLE = "Drift against cost"
_DECADES = 0.5
"""An axis over fewer decades is linear."""

_CELL = (0.035, 0.05)
"""Points this near to each other, as shares of the axes, have one label."""

_MOST_IN_LABEL = 4
_RIGHT = 0.8
"""Share of the width from which labels are to the left of their points."""

CAPTION = (
    "One point for each variant, with its number in the table; both axes are better when lower. Filled, joined by the "
    "line: variants that no other dominates, that is, no other is at most as large on both axes and smaller on one. "
    "Medians are compared as they are, whatever their noise."
)


@dataclass(frozen=True)
class Point:
    """A variant of a run: its number in the table, drift (rel. L2), time of a step and bytes of its weights.

    None or NaN where it has no such number. variant: its name, or that of its group; it decides the colour. seconds: or
    a ratio to a baseline, as the name of the axis says.
    """

    number: int
    variant: str
    drift: float | None
    seconds: float | None
    weight_bytes: int | None


SECONDS = "median time of a step in s"


def fronts(points: Sequence[Point], time: str = SECONDS) -> dict[str, list[int]]:
    """By what the drift is drawn against, the numbers of the variants that no other dominates.

    time: what `seconds` of the points are, for the axis.
    """
    found = {}
    for name, cost in _costs(points, time).items():
        own = [point for point in points if _is_known(point.drift) and _is_known(cost(point))]
        kept = nondominated(np.array([(cost(point), point.drift) for point in own], dtype=float))
        found[name] = [point.number for point, on_front in zip(own, kept, strict=True) if on_front]
    return found


def draw(points: Sequence[Point], result: str, time: str = SECONDS) -> Drawing | Absent:
    """Draws a panel for each cost in which the points differ. result: what the drift is of, for the axis."""
    costs = _costs(points, time)
    if not costs:
        return Absent(TITLE, "Fewer than two variants have both a finite drift and a step time.")
    figure = style.new_figure(3.9, wspace=0.06)
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    colours = _colours(points)
    for axes, (name, cost), front in zip(panels, costs.items(), fronts(points, time).values(), strict=True):
        _draw_panel(axes, [p for p in points if _is_known(p.drift) and _is_known(cost(p))], cost, front, colours)
        axes.set_xlabel(f"{name} (lower is better)")
    panels[0].set_ylabel(f"{result}: final rel. L2 (lower is better)")
    if len(colours) > 1:
        handles = [Line2D([], [], color=colour, marker="o", linestyle="none") for colour in colours.values()]
        names = list(labels.distinct(list(colours), 44).values())
        columns = max(1, min(len(names), int(style.WIDTH / (0.075 * max(map(len, names)) + 0.5))))
        figure.legend(handles, names, loc="outside upper left", ncols=columns, borderaxespad=0.2, handlelength=1)
    return Drawing("pareto", TITLE, figure, _caption(points))


def _costs(points: Sequence[Point], time: str) -> dict[str, Callable[[Point], float | None]]:
    """By their names on an axis, the costs that two or more points with a drift have; of weights, two or more sizes."""
    drifting = [point for point in points if _is_known(point.drift)]
    costs: dict[str, Callable[[Point], float | None]] = {}
    if sum(_is_known(point.seconds) for point in drifting) > 1:
        costs[time] = lambda point: point.seconds
    sizes = {point.weight_bytes for point in drifting if point.weight_bytes is not None}
    if len(sizes) > 1:
        exponent = exponent_of(max(sizes))
        costs[f"weights with their scales in {UNITS[exponent]}"] = lambda p: (
            None if p.weight_bytes is None else p.weight_bytes / 1024**exponent
        )
    return costs


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _caption(points: Sequence[Point]) -> str:
    text = CAPTION
    if any(point.drift == 0 for point in points):
        text += " A triangle at the lower edge: no drift at all."
    without = [point.number for point in points if not _is_known(point.drift)]
    if without:
        text += f" Without a finite drift, and not drawn: {', '.join(map(str, without))}."
    return text


def _colours(points: Sequence[Point]) -> Mapping[str, str]:
    """A colour for each name of a variant; one colour for all where the names are too many."""
    names = list(dict.fromkeys(point.variant for point in points))
    if len(names) > len(style.PALETTE):
        return {"": style.PALETTE[0]}
    return dict(zip(names, style.PALETTE, strict=False))


def _draw_panel(
    axes: Axes,
    points: Sequence[Point],
    cost: Callable[[Point], float | None],
    front: Sequence[int],
    colours: Mapping[str, str],
) -> None:
    x = np.array([cost(point) for point in points], dtype=float)
    drift = np.array([point.drift for point in points], dtype=float)
    _set_axis(axes, "x", x)
    floor = _set_axis(axes, "y", drift)
    y = np.where(drift > 0, drift, floor)
    ordered = sorted((at for at, point in enumerate(points) if point.number in front), key=lambda at: (x[at], y[at]))
    axes.step(x[ordered], y[ordered], where="post", color=style.MUTED, linewidth=1, zorder=1)
    for at, point in enumerate(points):
        colour = colours.get(point.variant, style.PALETTE[0])
        face = colour if point.number in front else "white"
        look: dict[str, Any] = {"color": face, "markeredgecolor": colour, "markersize": 6.5, "clip_on": False}
        axes.plot(x[at], y[at], "v" if drift[at] == 0 else "o", zorder=3 + (point.number in front), **look)
    axes.grid()
    _number(axes, points, x, y, front)


def _set_axis(axes: Axes, which: str, values: np.ndarray) -> float:
    """Sets scale and limits of the axis "x" or "y" around `values`: log over several decades, else linear.

    Returns where a zero is drawn.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    positive = values[values > 0]
    if len(positive) and np.log10(positive.max() / positive.min()) >= _DECADES:
        low, high = style.log_range([positive])
        low = low / 2 if len(positive) < len(values) else low
        axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
        style.log_ticks(axis, low, high)
        return low
    low, high = float(values.min()), float(values.max())
    pad = max(0.1 * (high - low), 0.02 * abs(high), 1e-12)
    axes.set(**{f"{which}lim": (0.0 if low == 0 else low - pad, high + pad)})
    axis.set_major_locator(MaxNLocator(5))
    return 0.0


def _number(axes: Axes, points: Sequence[Point], x: np.ndarray, y: np.ndarray, front: Sequence[int]) -> None:
    """Writes the number of each point above it; points that would cover each other share a label."""
    shares = axes.transAxes.inverted().transform(axes.transData.transform(np.column_stack([x, y])))
    groups: dict[tuple[int, int], list[int]] = {}
    for at, share in enumerate(shares):
        groups.setdefault((round(share[0] / _CELL[0]), round(share[1] / _CELL[1])), []).append(at)
    for members in groups.values():
        numbers = [str(points[at].number) for at in members]
        more = ["…"] if len(numbers) > _MOST_IN_LABEL else []
        bold = any(points[at].number in front for at in members)
        right = shares[members[0]][0] > _RIGHT
        axes.annotate(
            ", ".join([*numbers[:_MOST_IN_LABEL], *more]),
            (x[members[0]], y[members[0]]),
            xytext=(-5 if right else 5, 5),
            ha="right" if right else "left",
            textcoords="offset points",
            fontsize=9,
            fontweight="bold" if bold else "normal",
            color=style.INK if bold else style.MUTED,
            zorder=5,
        )
