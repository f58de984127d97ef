"""The style of figures: one colour per variant in every figure, fonts, axes, legend, and files.

Uses only matplotlib's object interface, so that no figure outlives its caller and no global state changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
from PIL import Image

from precision_lab.record.files import write_atomically
from precision_lab.report.figures import ticks
from precision_lab.report.figures.labels import distinct

WIDTH = 9.2  # inches: the width of a page at 9.5 pt
DPI = 150
PNG_LEVEL = 2  # of zlib: the default 6 takes a third of the time of drawing
INK = "#222222"
MUTED = "#6b6b6b"
FAINT = "#e4e4e4"
REFERENCE = "#555555"
# Okabe and Ito (2008), distinguishable with every common colour blindness. Black is reserved for the reference, and
# yellow is too faint for a line on white; the wine of Tol (2021) replaces it
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
LEAST_CONTRAST = 4.5  # of text with its background, WCAG 2.2, 1.4.3
LINE_STYLES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (8, 3)), (0, (3, 1, 1, 1, 1, 1)))
FONTS = ("Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans")

Positions = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """The appearance of one variant in every figure of a report."""

    colour: str
    line: Any
    width: float
    order: float
    alpha: float = 1.0

    @property
    def ink(self) -> str:
        """The colour of the variant's name: as that of its line, and dark enough to be read."""
        return ink(self.colour)

    @property
    def dashes(self) -> list[float]:
        """Lengths of dashes and gaps, in widths of the line; empty for a plain line."""
        return [] if isinstance(self.line, str) else list(self.line[1])


@dataclass(frozen=True)
class Drawing:
    """A figure and its caption. `name` is the stem of its files."""

    name: str
    title: str
    figure: Figure
    caption: str
    inline: str = "svg"


@dataclass(frozen=True)
class Absent:
    """Replaces a figure for which the run has no data; `reason` is one line."""

    title: str
    reason: str


def looks(variants: Sequence[str], reference: str) -> dict[str, Look]:
    """The appearance of each variant: the reference is a broad grey line; others cycle colours, then line styles."""
    others = [name for name in variants if name != reference]
    styles = {reference: Look(REFERENCE, "-", 3.2, 1.5, 0.55)}
    for at, name in enumerate(others):
        line = LINE_STYLES[at // len(PALETTE) % len(LINE_STYLES)]
        styles[name] = Look(PALETTE[at % len(PALETTE)], line, 1.5, 3 - 0.01 * at)
    return styles


def ink(colour: str) -> str:
    """`colour`, darkened as far as text on white needs for LEAST_CONTRAST."""
    channels = np.array(to_rgb(colour))
    shades = (to_hex(channels * share) for share in np.linspace(1, 0, 101))
    return next(shade for shade in shades if contrast(shade, "white") >= LEAST_CONTRAST)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, from 1 to 21 (WCAG 2.2)."""
    low, high = sorted(_luminance(colour) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.2)."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@contextmanager
def theme() -> Iterator[None]:
    """Context manager that sets the fonts and lines of all figures."""
    available = set(fontManager.get_font_names())
    font = next(name for name in FONTS if name in available)
    with matplotlib.rc_context(
        {
            "font.family": list(dict.fromkeys((font, "DejaVu Sans"))),  # each is looked up for each text
            "font.size": 9.5,
            "axes.labelsize": 9.5,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.titlepad": 5,
            "axes.titley": 1.0,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9.5,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.7,
            "axes.edgecolor": MUTED,
            "axes.labelcolor": INK,
            "text.color": INK,
            "text.parse_math": False,  # names, claims and errors are shown as they are written, with their dollar signs
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "axes.axisbelow": True,
            "grid.color": FAINT,
            "grid.linewidth": 0.6,
            "xtick.major.width": 0.7,
            "ytick.major.width": 0.7,
            "xtick.minor.width": 0.4,
            "ytick.minor.width": 0.4,
            "hatch.linewidth": 0.6,
            "svg.fonttype": "path",
            "image.composite_image": False,  # an SVG keeps each picture; to merge them takes longer than the rest
            "svg.hashsalt": "precision_lab",
        }
    ):
        yield


def new_figure(height: float, **spacing: Any) -> Figure:
    """A figure of page width and `height` inches; `spacing` is passed to ConstrainedLayoutEngine."""
    return Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(**spacing))


def save(drawing: Drawing, folder: Path) -> tuple[Path, Path]:
    """Writes `name`.png and `name`.svg into `folder`; the same data give the same bytes."""
    figure = drawing.figure
    figure.set_dpi(DPI)  # the sizes of texts are known from then on
    canvas = FigureCanvasAgg(figure)  # of the layout and the PNG: it measures each text once
    ticks.write_powers_as_text(figure)
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if not axis.get_label_text():
            axis.set_label_coords(0, 0)  # else matplotlib seeks a place beside all tick labels, again at each drawing
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.execute(figure)  # once; otherwise each file would solve it again, which takes as long as drawing
    figure.set_layout_engine(None)  # with "none" each file would draw everything once more, only to solve no layout
    for axes in figure.axes:  # the solver's last bits vary between runs, and SVG ids are hashes of positions
        axes.set_position(tuple(round(end, 9) for end in axes.get_position(original=True).bounds))
    png, svg = (folder / f"{drawing.name}.{kind}" for kind in ("png", "svg"))
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])  # the background is opaque
    write_atomically(png, lambda file: picture.save(file, "png", dpi=(DPI, DPI), compress_level=PNG_LEVEL))
    undated = {"Date": None, "Creator": None}
    write_atomically(svg, lambda file: figure.savefig(file, format="svg", dpi=DPI, metadata=undated))
    return png, svg


def draw_band(axes: Axes, look: Look, summary: pd.DataFrame) -> None:
    """Draws a line through the medians and a band from minimum to maximum.

    summary: from `view.spread`, by block or step. The line has a gap at each number that was not measured; a value
    between two gaps is a point.
    """
    x = np.arange(int(summary.index.min()), int(summary.index.max()) + 1)
    whole = summary.reindex(x)
    median, low, high = (whole[name].to_numpy(float) for name in ("median", "min", "max"))
    style = {"color": look.colour, "linestyle": look.line, "linewidth": look.width, "alpha": look.alpha}
    axes.plot(x, median, zorder=look.order, **style)
    axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0, zorder=look.order - 1)
    measured = np.isfinite(median)
    around = np.concatenate([[False], measured, [False]])
    alone = measured & ~around[:-2] & ~around[2:]
    if alone.any():  # a line through one point draws nothing
        axes.plot(x[alone], median[alone], "o", color=look.colour, alpha=look.alpha, markersize=5, zorder=look.order)
        axes.vlines(x[alone], low[alone], high[alone], color=look.colour, linewidth=1, zorder=look.order)


def mark_nonfinite(axes: Axes, positions: Mapping[str, Positions], styles: Mapping[str, Look]) -> None:
    """Draws a row of crosses per variant along the top edge, at the `positions` where it is not finite."""
    failing = [name for name in styles if len(positions.get(name, ()))]
    for row, name in enumerate(failing):
        x = positions[name]
        level = np.full(len(x), 0.965 - 0.055 * row)
        size, width = (16, 1.1) if len(x) < 30 else (7, 0.8)
        style: dict[str, Any] = {"color": styles[name].colour, "s": size, "linewidths": width, "zorder": 4}
        axes.scatter(x, level, marker="x", transform=axes.get_xaxis_transform(), **style)


def log_range(values: Sequence[Any], rows_of_crosses: int = 0) -> tuple[float, float]:
    """Limits of a log axis around the positive finite `values`, with space above for `rows_of_crosses`."""
    flat = np.concatenate([np.asarray(v, dtype=float).ravel() for v in values]) if len(values) else np.empty(0)
    flat = flat[np.isfinite(flat) & (flat > 0)]
    low, high = (np.log10(flat.min()), np.log10(flat.max())) if flat.size else (-1.0, 1.0)
    margin = max(0.06 * (high - low), 0.08)
    top = (high - low + 2 * margin) * 0.07 * rows_of_crosses
    return float(10 ** (low - margin)), float(10 ** (high + margin + top))


def log_axis(axes: Axes, low: float, high: float) -> None:
    """Sets up a log y axis from `low` to `high`: powers of ten over many decades, 1-2-5 in plain numbers over few."""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    log_ticks(axes.yaxis, low, high)
    axes.grid(axis="y")


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Sets the ticks of a log axis from `low` to `high`, as in `log_axis`."""
    decades = np.log10(high / low)
    if decades <= 2:
        subs = (1.0, 2.0, 5.0) if decades > 0.8 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
        axis.set_major_locator(LogLocator(subs=subs, numticks=20))
        axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
        axis.set_minor_locator(NullLocator())
    else:
        step = int(np.ceil(decades / 7))
        axis.set_major_locator(LogLocator(base=10.0**step, numticks=20))
        axis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=99) if decades <= 5 else NullLocator())
        axis.set_minor_formatter(NullFormatter())


def plain(value: float) -> str:
    """The label of a tick, such as 0.002, 50 or 2e+06."""
    return f"{value:g}" if 1e-4 <= abs(value) < 1e5 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def index_axis(axis: Axis, last: float, ticks: int = 7) -> None:
    """Sets integer ticks from 0 to `last`, both included; blocks and steps are numbered from 0."""
    locator = MaxNLocator(ticks, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
    values = [t for t in locator.tick_values(0, max(last, 1)) if 0 <= t < last]
    if len(values) > 1 and last - values[-1] <= 0.5 * values[1]:
        values.pop()
    axis.set_major_locator(FixedLocator([*values, last]))


def legend(figure: Figure, names: Sequence[str], styles: Mapping[str, Look], notes: Mapping[str, str]) -> None:
    """Draws one legend above all panels, with as many columns as fit; `notes` are appended to the names."""
    short = distinct(names, 44)
    labels = [short[name] + (f" ({notes[name]})" if name in notes else "") for name in names]
    handles = [
        Line2D([], [], color=look.colour, linestyle=look.line, linewidth=look.width, alpha=look.alpha)
        for look in (styles[name] for name in names)
    ]
    if not names:
        return
    inches = 0.075 * max(map(len, labels)) + 0.65
    columns = max(1, min(len(names), int(WIDTH / inches)))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, borderaxespad=0.2, handlelength=1.8)
