"""Figures of chosen scales: the scale of each block beside those of other variants, and the headroom that is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MultipleLocator

from precision_lab.analysis.scales.evidence import Evidence
from precision_lab.numerics.formats import FORMATS
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Absent, Drawing

SCALES = "Scales by block"
HEADROOM = "Headroom of the chosen scales in held-out cases"
_RECIPE = "scales"
UNDRAWN = "; below 1/32 it is not drawn"
_LOWEST = -5.0
"""log2 of the least need that is drawn: below 1, the distance to it matters little."""


def draw_scales(evidence: Evidence) -> Drawing | Absent:
    """A panel for each scale: by what each variant divides the place that needs it most, and what it needs."""
    chosen, divisors = evidence.tables["scales"], evidence.tables["divisors"]
    if "site" not in chosen or chosen["site"].isna().all():
        return Absent(SCALES, "No place that a scale divides was recorded.")
    names = _distinct(divisors)
    looks = style.looks([_RECIPE, *(name for name in names if name != _RECIPE)], "")
    parameters = list(dict.fromkeys(zip(chosen["technique"], chosen["parameter"], strict=True)))
    columns = min(2, len(parameters))
    rows = -(-len(parameters) // columns)
    figure = style.new_figure(1.0 + 2.2 * rows, hspace=0.08, wspace=0.05)
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False, sharex=True).ravel())
    largest = FORMATS[evidence.about["format"]].max
    for axes, (technique, parameter) in zip(panels, parameters, strict=False):
        own = chosen[(chosen["technique"] == technique) & (chosen["parameter"] == parameter)].dropna(subset=["site"])
        needed = np.log2(own["amax"].to_numpy(float) / largest)
        axes.plot(own["block"], needed, color=style.REFERENCE, linewidth=2.6, alpha=0.45, zorder=1)
        here = divisors[(divisors["technique"] == technique) & (divisors["parameter"] == parameter)]
        for name in names:
            line = here[here["variant"] == name].sort_values("block")
            look = looks[name]
            axes.step(
                line["block"], np.log2(line["divisor"].to_numpy(float)), where="mid", color=look.colour,
                linestyle=look.line, linewidth=look.width, zorder=look.order,
            )  # fmt: skip
        axes.set_title(f"{technique}: {parameter}")
        axes.grid(axis="y")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
        axes.set_ylim(bottom=max(axes.get_ylim()[0], _LOWEST))
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(MultipleLocator(max(1, round((high - low) / 6))))
    for axes in panels[len(parameters) :]:
        axes.set_axis_off()
    _label(panels, len(parameters), columns, int(chosen["block"].max()), "divided by")
    handles = [
        Line2D([], [], color=looks[name].colour, linestyle=looks[name].line, linewidth=looks[name].width)
        for name in names
    ]
    handles.append(Line2D([], [], color=style.REFERENCE, linewidth=2.6, alpha=0.45))
    words = [*names, "what the coverage set needs, no margin"]
    figure.legend(handles, words, loc="outside upper left", ncols=len(words), borderaxespad=0.2, handlelength=1.8)
    caption = (
        "For each scale and block, the place that needs the most, and by what each variant divides it, all its scales "
        "together. Grey: the largest magnitude of the coverage set over the largest number of "
        f"{evidence.about['format']}; a line above it holds, and the distance is the headroom in powers of two."
    )
    needs = np.log2(chosen.dropna(subset=["site"])["amax"].to_numpy(float) / largest)
    if (needs < 0).any():
        caption += f" Where grey is below 1, no scale is needed{UNDRAWN if (needs < _LOWEST).any() else ''}."
    return Drawing("scales", SCALES, figure, caption)


def _distinct(divisors: pd.DataFrame) -> list[str]:
    """The variants that divide anything, the recipe first."""
    dividing = divisors[divisors["divisor"] != 1]["variant"].unique().tolist()
    return [_RECIPE, *(name for name in dividing if name != _RECIPE)]


def draw_headroom(evidence: Evidence) -> Drawing | Absent:
    """The least headroom of each block: by arithmetic from the coverage set, and measured in the held-out runs."""
    heldout, chosen = evidence.tables["heldout"], evidence.tables["scales"]
    rows = heldout[heldout["block"].notna()]
    if rows.empty:
        return Absent(HEADROOM, "No block has a result in the format.")
    figure = style.new_figure(3.6)
    axes = figure.subplots()
    promised = chosen.groupby("block")["headroom_bits"].min()
    promised = promised[np.isfinite(promised)]
    axes.step(promised.index, promised, where="mid", color=style.PALETTE[0], linewidth=1.5)
    look: dict[str, Any] = {"color": style.PALETTE[0], "linewidth": 1.5}
    marks = [("promised by the coverage set", Line2D([], [], **look))] if len(promised) else []
    by_block = rows.assign(block=rows["block"].astype(int), scaled=rows["divisor"] != 1)
    for scaled, words, colour in (
        (True, "measured, scaled places", style.PALETTE[1]),
        (False, "measured, other places", style.PALETTE[2]),
    ):
        own = by_block[by_block["scaled"] == scaled].groupby("block")["measured_bits"].min().dropna()
        look = {"color": colour, "marker": "o", "linestyle": "none", "markersize": 4}
        axes.plot(own.index, own, zorder=3, **look)
        if len(own):
            marks.append((words, Line2D([], [], **look)))
    dots = len(marks) > (len(promised) > 0)
    margin = evidence.about["margin_bits"]
    look = {"color": style.MUTED, "linewidth": 0.8, "linestyle": (0, (5, 3))}
    axes.axhline(margin, **look)
    marks.append((f"margin, {margin:g} bit{'' if margin == 1 else 's'}", Line2D([], [], **look)))
    axes.axhline(0, color=style.INK, linewidth=0.8)
    failed = by_block[by_block["measured_bits"].isna()]["block"].unique()
    axes.scatter(failed, np.full(len(failed), 0.965), marker="x", color=style.PALETTE[1], s=16,
                 transform=axes.get_xaxis_transform())  # fmt: skip
    axes.set(xlabel="block", ylabel="headroom in bits (higher is better)")
    style.index_axis(axes.xaxis, int(by_block["block"].max()))
    axes.grid(axis="y")
    names, handles = zip(*marks, strict=True)
    figure.legend(handles, names, loc="outside upper left", ncols=4, borderaxespad=0.2, handlelength=1.8)
    caption = (
        f"log2 of the largest number of {evidence.about['format']} over the largest magnitude, the least over places, "
        "steps and cases. Below 0 a value overflows."
    )
    caption += " Line: scaled places in the coverage set, by arithmetic." if len(promised) else ""
    caption += " Dots: in the runs of the held-out cases." if dots else ""
    caption += " Crosses: blocks that are not finite there." if len(failed) else ""
    return Drawing("headroom", HEADROOM, figure, caption)


def _power(value: float) -> str:
    """A tick at log2 of a scale: 1, 16, 1/8."""
    power = round(value)
    if value != power:
        return ""
    return str(2**power) if power >= 0 else f"1/{2**-power}"


def _label(panels: Sequence[Axes], count: int, columns: int, last: int, what: str) -> None:
    for at, axes in enumerate(panels[:count]):
        style.index_axis(axes.xaxis, last)
        if at % columns == 0:
            axes.set_ylabel(what)
        if at + columns >= count:
            axes.set_xlabel("block")
            axes.tick_params(labelbottom=True)
