"""Which blocks the final residual streams come from: the share of every part that a block adds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from precision_lab.record.address import split_address
from precision_lab.record.glob import compile_glob
from precision_lab.record.layout import Layout
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Drawing
from precision_lab.report.view import View, heading

TITLE = "Where the final stream comes from"
CAPTION = (
    "Share of each contribution in the stream after the last block: its projection on the final stream, relative to "
    "it, in {variant}{branch}; median over steps, prompts and seeds.{beside} All shares of a stream add up to 1 (line: "
    "running sum).{against}"
)
BESIDE = " The bars of a block are drawn side by side."
AGAINST = " A negative share points against the final stream."


def draw(view: View) -> Drawing | None:
    """None for a run without the contributions probe, and for a subject without streams."""
    table = view.contributions
    if table is None:
        return None
    variant = view.reference if (table["variant"] == view.reference).any() else str(table["variant"].iloc[0])
    rows = table[(table["variant"] == variant) & (table["component"] == view.layout.default)]
    by_stream = {name: rows[rows["stream"] == name] for name in view.layout.streams}
    streams = {name: own for name, own in by_stream.items() if own["block"].notna().any()}
    if not streams:
        return None
    figure = style.new_figure(3.2, wspace=0.04)
    for axes, (name, own) in zip(figure.subplots(1, len(streams), squeeze=False)[0], streams.items(), strict=True):
        _draw_stream(axes, own, view.layout)
        axes.set_title(heading(view.layout.streams[name]))
    figure.axes[-1].legend(loc="upper left")
    figure.axes[0].set_ylabel("share of the final stream")
    heights = [height for axes in figure.axes for bars in axes.containers for height in _heights(bars)]
    caption = CAPTION.format(
        variant=variant,
        branch=view.in_branch,
        beside=BESIDE if len(view.layout.adds) > 1 else "",
        against=AGAINST if any(height < 0 for height in heights) else "",
    )
    return Drawing("contributions", TITLE, figure, caption)


def _heights(bars: Any) -> list[float]:
    return [bar.get_height() for bar in bars]


def _draw_stream(axes: Axes, rows: pd.DataFrame, layout: Layout) -> None:
    medians = rows.groupby("site").agg(share=("final_share", "median"), block=("block", "first")).reset_index()
    blocks = np.arange(int(medians["block"].max()) + 1)
    width = 0.8 / max(len(layout.adds), 1)
    for at, (title, pattern) in enumerate(layout.adds.items()):
        own = medians[_named_by(medians["site"], pattern, layout)].groupby("block")["share"].sum()
        shift = (at - (len(layout.adds) - 1) / 2) * width
        colour = style.PALETTE[at % len(style.PALETTE)]
        axes.bar(blocks + shift, own.reindex(blocks, fill_value=0.0).to_numpy(), width, color=colour, label=title)
    start = medians.loc[medians["block"].isna(), "share"].sum()
    sums = start + medians.groupby("block")["share"].sum().reindex(blocks, fill_value=0.0).cumsum()
    axes.plot(blocks, sums.to_numpy(), color=style.MUTED, linewidth=1, label="running sum")
    axes.axhline(0, color=style.FAINT, linewidth=0.8, zorder=0)
    axes.set_xlabel("block")
    axes.set_xlim(-1, len(blocks))
    style.index_axis(axes.xaxis, blocks[-1])


def _named_by(sites: pd.Series, pattern: str, layout: Layout) -> pd.Series:
    component, glob = split_address(pattern, layout.default)
    expression = compile_glob(glob)
    return sites.map(lambda site: component == layout.default and expression.fullmatch(site) is not None).astype(bool)
