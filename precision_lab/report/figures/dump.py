"""The deviation of another program's arrays from the lab's, over the operations in order."""

from __future__ import annotations

import numpy as np

from precision_lab.record.foreign import Comparison
from precision_lab.report.figures import labels, style
from precision_lab.report.figures.style import Absent, Drawing

TITLE = "Deviation of each array, in units of rounding"
_LEAST, _MOST = 1e-3, 1e12
_WRONG, _RIGHT = "#b3261e", style.PALETTE[0]


def draw(found: Comparison) -> Drawing | Absent:
    """The error of each array in units of rounding of its format, in order of execution, and the limit of each."""
    if not found.rows:
        return Absent(TITLE, "No array is compared.")
    x = np.arange(len(found.rows))
    units = np.array([row.units for row in found.rows])
    share = np.array([row.share for row in found.rows])
    wrong = np.array([row.wrong for row in found.rows])
    with np.errstate(divide="ignore", invalid="ignore"):
        limit = np.where((units > 0) & np.isfinite(units) & (share > 0), units / share, np.nan)
    tails = np.array([row.tail for row in found.rows])
    limit[tails] = np.nan  # judged by another measure
    shown = np.clip(np.where(np.isfinite(units), units, _MOST), _LEAST, _MOST)
    figure = style.new_figure(3.4)
    axes = figure.subplots()
    finite = np.isfinite(limit)
    axes.plot(x[finite], limit[finite], color=style.MUTED, linewidth=0.9, drawstyle="steps-mid", label="limit")
    axes.scatter(x[~wrong], shown[~wrong], s=7, color=_RIGHT, lw=0, label="right")
    if wrong.any():
        axes.scatter(x[wrong], shown[wrong], s=22, color=_WRONG, marker="D", lw=0, label="wrong", zorder=4)
    first = found.first_wrong
    if first is not None:
        axes.axvline(first, color=_WRONG, linewidth=0.8, linestyle=(0, (3, 2)))
        late = first > len(x) / 2
        address = labels.shorten(found.rows[first].address, 60)
        axes.text(
            first,
            1.02,
            address,
            color=style.ink(_WRONG),
            transform=axes.get_xaxis_transform(),
            fontsize=9,
            ha="right" if late else "left",
            va="bottom",
        )
    values = shown if not finite.any() else np.concatenate([shown, limit[finite]])
    style.log_axis(axes, max(_LEAST / 2, values.min() / 2), values.max() * 3)
    axes.set_xlabel("arrays of the dump, in order of execution")
    axes.set_ylabel("units of rounding")
    axes.margins(x=0.01)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, borderaxespad=0.2)
    floor = f" Smaller deviations and equal arrays are drawn at {_LEAST:g}." if (units < _LEAST).any() else ""
    beyond = " Arrays that are not finite are drawn at the top." if not np.isfinite(units).all() else ""
    caption = (
        "Relative L2 error of each array on the inputs that the other program gave it, in units of rounding of its "
        f"format, in order of execution.{floor}{beyond} Grey: the limit that rounding sets. Red: wrong. An activation "
        "may be wrong below the line, by its largest errors."
    )
    return Drawing("deviation", TITLE, figure, caption)
