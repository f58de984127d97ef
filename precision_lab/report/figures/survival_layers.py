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
    "adapter. Gain: its projection on what was meant; 1 means that it arrives in full on average. {rounding}. {orders}."
)
ORDERS = {
    "before": "fused before: the change is added, then quantised",
    "after": "fused after: the quantised weight is decoded, changed and quantised again",
}
ROUNDINGS = {"nearest": "Rounded to nearest", "stochastic": "Rounded stochastically"}
SORTED = "Formats are in the order of their correlation, fused {order} quantising."
CLIPPED = "Gains outside of {low:g} to {high:g} are drawn at the edge."
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
    formats = list(dict.fromkeys([*first.sort_values().index, *own["format"]]))
    figure = style.new_figure(1.1 + 0.3 * len(formats))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, column in ((left, "correlation"), (right, "gain")):
        for shift, order in zip(
            np.linspace(0.18, -0.18, len(orders)) if len(orders) > 1 else [0.0], orders, strict=True
        ):
            for place, name in enumerate(formats):
                found = own[(own["format"] == name) & (own["order"] == order)][column].to_numpy(float)
                shown = found if column == "correlation" else np.clip(found, _LOW, _HIGH)
                _points(axes, shown, place + float(shift), _COLOURS[order])
        axes.axvline(1, color=style.REFERENCE, linewidth=0.8, linestyle="--")
        axes.grid(axis="x")
        axes.set_xlabel(column)
    left.set_yticks(range(len(formats)), list(labels.distinct(formats, 24).values()))
    left.set_xlim(min(-0.02, float(own["correlation"].min()) - 0.02), 1.02)
    right.set_xlim(_LOW - 0.05, _HIGH + 0.05)
    handles = [Line2D([], [], color=_COLOURS[order], marker="o", linestyle="", markersize=4) for order in orders]
    figure.legend(handles, [f"fused {order}" for order in orders], loc="outside upper left", ncols=2)
    gains = own["gain"].to_numpy(float)
    said = "; ".join(ORDERS[each] for each in orders)
    caption = [CAPTION.format(rounding=ROUNDINGS[rounding], orders=said[:1].upper() + said[1:])]
    if len(formats) > 1:
        caption.append(SORTED.format(order=orders[0]))
    if ((gains < _LOW) | (gains > _HIGH)).any():
        caption.append(CLIPPED.format(low=_LOW, high=_HIGH))
    return Drawing("survival", TITLE, figure, " ".join(caption))


def _points(axes: Axes, values: np.ndarray, place: float, colour: str) -> None:
    values = values[np.isfinite(values)]
    if not len(values):
        return
    axes.scatter(values, np.full(len(values), place), s=6, color=colour, alpha=0.35, linewidth=0)
    axes.plot([np.median(values)] * 2, [place - 0.15, place + 0.15], color=colour, linewidth=2)
