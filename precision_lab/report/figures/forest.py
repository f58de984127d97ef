"""Parts of forest plots: labelled rows, axes of ratios, an effect with its interval, columns of words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from precision_lab.report.figures import style

BAND = "#e2e2e2"
LINE = 0.145  # inches of a line of text
REACH = 5.0  # an axis of ratios ends at 1 / REACH and REACH at the most
MARKER = 5.5


def wrap(text: str, length: int, lines: int = 3) -> str:
    """`text` in as few lines of up to `length` characters as it needs, of about the same length."""
    needed = min(max(1, math.ceil(len(text) / length)), lines)
    longest = max(map(len, text.split()), default=1)  # narrower, a word would be broken
    for width in range(max(min(longest, length), math.ceil(len(text) / needed)), length + 1):
        if len(textwrap.wrap(text, width, break_on_hyphens=False)) <= needed:
            return textwrap.fill(text, width, break_on_hyphens=False)
    return textwrap.fill(text, length, max_lines=lines, placeholder=" …")


def height(label: str) -> float:
    """Inches of the row of a label."""
    return LINE * (label.count("\n") + 1) + 0.12


def lay_out(axes: Axes, labels: Sequence[str]) -> list[float]:
    """Rows from the top, as high as their labels need; returns their middles, y being in inches."""
    heights = [height(label) for label in labels]
    ends = np.cumsum(heights)
    centres = [float(end - own / 2) for end, own in zip(ends, heights, strict=True)]
    axes.set_ylim(float(ends[-1]), 0)
    axes.set_yticks(centres, list(labels), linespacing=1.1)
    axes.tick_params(axis="y", length=0, pad=8)
    axes.spines["left"].set_visible(False)
    for end in ends[:-1]:
        axes.axhline(end, color=style.FAINT, linewidth=0.6, zorder=0.4)
    return centres


def ratio_limits(values: Sequence[float]) -> tuple[float, float]:
    """A range of ratios around 1, as far either way as the values go, within REACH."""
    logs = [abs(math.log(value)) for value in values if math.isfinite(value) and value > 0]
    half = min(max([*logs, math.log(1.2)]) * 1.08, math.log(REACH))
    return math.exp(-half), math.exp(half)


def ratio_axis(axes: Axes, limits: tuple[float, float]) -> None:
    """A log x axis of ratios, with a line at 1."""
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    few = math.log10(limits[1] / limits[0]) < 0.8
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0, 8.5) if few else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.plain(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(1, color=style.MUTED, linewidth=0.8, zorder=1)
    axes.grid(axis="x")


def draw_tolerance(axes: Axes, y: float, tall: float, tolerance: float) -> None:
    """Ratios within 1 + tolerance either way, shaded in a row."""
    upper = 1 + tolerance
    axes.barh(y, upper - 1 / upper, tall, left=1 / upper, color=BAND, linewidth=0, zorder=0.5)


def draw_effect(axes: Axes, y: float, effect: tuple[float, float, float], colour: str, marker: str) -> None:
    """An estimate and its interval (estimate, lo, hi; NaN where undefined); a triangle for what is beyond the axis."""
    value, lo, hi = effect
    left, right = axes.get_xlim()
    if lo < right and hi > left:
        axes.hlines(y, max(lo, left), min(hi, right), color=colour, linewidth=1.8, zorder=2)
    if not math.isfinite(value):
        return
    beyond = ">" if value > right else "<" if value < left else ""
    look: dict[str, Any] = {"color": colour, "markersize": MARKER, "zorder": 3, "clip_on": False}
    if marker == "s":  # open: nothing was decided
        look["markerfacecolor"] = "white"
    axes.plot(min(max(value, left), right), y, beyond or marker, **look)


def write_beside(axes: Axes, y: float, points: float, text: str, colour: str = style.INK) -> None:
    """Words to the right of a row, so many points from the axes."""
    place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
    axes.annotate(text, (1, y), (points, 0), color=colour, fontsize=9, linespacing=1.1, **place)


def head(axes: Axes, points: float, text: str) -> None:
    """The title of a column of words."""
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    axes.annotate(text, (1, 1), (points, 5), color=style.MUTED, fontsize=9, **place)
