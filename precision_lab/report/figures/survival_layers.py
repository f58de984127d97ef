"""What arrives in each format, as the distribution over the linears: correlation and gain, both orders of fusing."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from precision_lab.report.figures import labels, style
from precision_lab.report.figures.style import Absent, Drawing

TITLE = "What arrives, by format"
CAPTION = (
    "Each point is a linear; the bar is the median. Correlation: of what arrives with what was meant, 1 for a live "
    "adapter. Gain: its projection on what was meant; 1 means that it arrives in full on average. Rounding to nearest. "
    "Before: added, then quantised; after: the quantised weight is decoded, changed and quantised again. Formats "
    "are in the order of their correlation before quantising. Gains outside of -0.5 to 2 are drawn at the edge."
)
_COLOURS = {"before": style.PALETTE[0], "after": style.PALETTE[1]}
_LOW, _HIGH = -0.5, 2.0


def draw(table: pd.DataFrame) -> Drawing | Absent:
    """table: survival.parquet."""
    roundings = list(table["rounding"].unique())
    rounding = "nearest" if "nearest" in roundings else roundings[0]
    own = table[(table["rounding"] == rounding) & table["correlation"].notna()]
    if own.empty:
        return Absent(TITLE, "No correlation is defined.")
    orders = [order for order in _COLOURS if (own["order"] == order).any()]
    first = own[own["order"] == orders[0]].groupby("format")["correlation"].median()
    formats = list(first.sort_values().index)
    figure = style.new_figure(1.1 + 0.3 * len(formats))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, column in ((left, "correlation"), (right, "gain")):
        for shift, order in zip(
            np.linspace(0.18, -0.18, len(orders)) if len(orders) > 1 else [0.0], orders, strict=True
        ):
            for place, name in enumerate(formats):
                found = own[(own["format"] == name) & (own["order"] == order)][column].to_numpy(float)
                _points(axes, found, place + float(shift), _COLOURS[order])
        axes.axvline(1, color=style.REFERENCE, linewidth=0.8, linestyle="--")
        axes.grid(axis="x")
        axes.set_xlabel(column)
    left.set_yticks(range(len(formats)), list(labels.distinct(formats, 24).values()))
    left.set_xlim(min(-0.02, float(own["correlation"].min()) - 0.02), 1.02)
    right.set_xlim(_LOW - 0.05, _HIGH + 0.05)
    handles = [Line2D([], [], color=_COLOURS[order], marker="o", linestyle="", markersize=4) for order in orders]
    figure.legend(handles, [f"fused {order}" for order in orders], loc="outside upper left", ncols=2)
    return Drawing("survival", TITLE, figure, CAPTION)


def _points(axes: Axes, values: np.ndarray, place: float, colour: str) -> None:
    values = np.clip(values[np.isfinite(values)], _LOW, _HIGH) if len(values) else values
    if not len(values):
        return
    axes.scatter(values, np.full(len(values), place), s=6, color=colour, alpha=0.35, linewidth=0)
    axes.plot([np.median(values)] * 2, [place - 0.15, place + 0.15], color=colour, linewidth=2)
