"""The parts of forest plots: labelled rows, axes of ratios, effects with intervals, and columns of text."""

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
LINE = 0.145  # height of a line of text in inches
REACH = 5.0  # an axis of ratios spans at most 1 / REACH to REACH
MARKER = 5.5
SIZE = 9.0  # of the columns of text, in points


def wrap(text: str, length: int, lines: int = 3) -> str:
    """Wraps `text` into the fewest lines of up to `length` characters, with about equal lengths."""
    needed = min(max(1, math.ceil(len(text) / length)), lines)
    longest = max(map(len, text.split()), default=1)  # a smaller width would break a word
    for width in range(max(min(longest, length), math.ceil(len(text) / needed)), length + 1):
        if len(textwrap.wrap(text, width, break_on_hyphens=False)) <= needed:
            return textwrap.fill(text, width, break_on_hyphens=False)
    return textwrap.fill(text, length, max_lines=lines, placeholder=" …")


def height(label: str) -> float:
    """Height in inches of the row with this label."""
    return LINE * (label.count("\n") + 1) + 0.12


def lay_out(axes: Axes, labels: Sequence[str], tallest: Sequence[str] | None = None) -> list[float]:
    """Lays out rows from the top; returns the y of their middles in inches.

    tallest: of each row the text that its height follows, if that is not its label.
    """
    heights = [height(text) for text in (labels if tallest is None else tallest)]
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
    """A range of ratios, symmetric about 1, that covers `values` within REACH."""
    logs = [abs(math.log(value)) for value in values if math.isfinite(value) and value > 0]
    half = min(max([*logs, math.log(1.2)]) * 1.08, math.log(REACH))
    return math.exp(-half), math.exp(half)


def beyond(limits: tuple[float, float], values: Sequence[float]) -> bool:
    """Whether a finite value lies beyond an axis with these limits, and is drawn as a triangle."""
    return any(math.isfinite(value) and not limits[0] <= value <= limits[1] for value in values)


def ratio_axis(axes: Axes, limits: tuple[float, float]) -> None:
    """Sets up a log x axis of ratios with a line at 1."""
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    few = math.log10(limits[1] / limits[0]) < 0.8
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0, 8.5) if few else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.plain(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(1, color=style.MUTED, linewidth=0.8, zorder=1)
    axes.grid(axis="x")


def draw_tolerance(axes: Axes, y: float, tall: float, tolerance: float) -> None:
    """Shades the ratios within a factor of 1 + tolerance of 1 in a row."""
    upper = 1 + tolerance
    axes.barh(y, upper - 1 / upper, tall, left=1 / upper, color=BAND, linewidth=0, zorder=0.5)


def draw_effect(axes: Axes, y: float, effect: tuple[float, float, float], colour: str, marker: str) -> None:
    """Draws an estimate with its interval (estimate, lo, hi; NaN if undefined). Triangles mark values off the axis."""
    value, lo, hi = effect
    left, right = axes.get_xlim()
    if lo < right and hi > left:
        axes.hlines(y, max(lo, left), min(hi, right), color=colour, linewidth=1.8, zorder=2)
    if not math.isfinite(value):
        return
    beyond = ">" if value > right else "<" if value < left else ""
    look: dict[str, Any] = {"color": colour, "markersize": MARKER, "zorder": 3, "clip_on": False}
    if marker == "s":  # open marker: inconclusive
        look["markerfacecolor"] = "white"
    axes.plot(min(max(value, left), right), y, beyond or marker, **look)


def write_beside(axes: Axes, y: float, points: float, text: str, colour: str = style.INK) -> None:
    """Writes text to the right of a row, `points` points from the axes."""
    place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
    axes.annotate(text, (1, y), (points, 0), color=colour, fontsize=SIZE, linespacing=1.1, **place)


def head(axes: Axes, points: float, text: str) -> None:
    """Writes the title of a column of text."""
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    axes.annotate(text, (1, 1), (points, 5), color=style.MUTED, fontsize=SIZE, **place)
