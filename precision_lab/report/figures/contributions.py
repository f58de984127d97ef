"""Which blocks the final residual streams come from: the share of every attention and feed-forward."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from precision_lab.report.figures import style
from precision_lab.report.figures.style import Drawing
from precision_lab.report.tables import Run, contributions

TITLE = "Where the final stream comes from"
BRANCHES = {"add1": "attention", "add2": "feed-forward"}
STREAMS = {"img": "Image stream", "txt": "Text stream"}
CAPTION = (
    "Share of each branch's contribution in the stream after the last block: its projection on the final stream, "
    "relative to it, in {variant}; conditional branch, median over steps, prompts and seeds; the two bars of a block "
    "stand side by side. All shares of a stream add up to 1 (line: running sum); a negative share was taken back later."
)


def draw(run: Run) -> Drawing | None:
    """None for a run without the contributions probe."""
    table = contributions(run.path)
    if table is None:
        return None
    variant = run.reference if (table["variant"] == run.reference).any() else str(table["variant"].iloc[0])
    rows = table[table["variant"] == variant]
    figure = style.new_figure(3.2, wspace=0.04)
    for axes, (stream, title) in zip(figure.subplots(1, 2), STREAMS.items(), strict=True):
        _draw_stream(axes, rows[rows["site"].str.contains(rf"(?:^|[._]){stream}_")])
        axes.set_title(title)
    axes.legend(loc="upper left")
    figure.axes[0].set_ylabel("share of the final stream")
    return Drawing("contributions", TITLE, figure, CAPTION.format(variant=variant))


def _draw_stream(axes: Axes, rows: pd.DataFrame) -> None:
    medians = rows.groupby("site").agg(share=("final_share", "median"), block=("block", "first")).reset_index()
    medians["branch"] = medians["site"].str.extract(r"_(add\d)$", expand=False)
    blocks = np.arange(int(medians["block"].max()) + 1)
    for shift, colour, (key, name) in zip((-0.2, 0.2), style.PALETTE, BRANCHES.items(), strict=False):
        own = medians[medians["branch"] == key].set_index("block")["share"].reindex(blocks, fill_value=0.0)
        axes.bar(blocks + shift, own.to_numpy(), 0.4, color=colour, label=name)
    start = medians.loc[medians["block"].isna(), "share"].sum()
    sums = start + medians.groupby("block")["share"].sum().reindex(blocks, fill_value=0.0).cumsum()
    axes.plot(blocks, sums.to_numpy(), color=style.MUTED, linewidth=1, label="running sum")
    axes.axhline(0, color=style.FAINT, linewidth=0.8, zorder=0)
    axes.set_xlabel("block")
    axes.set_xlim(-1, len(blocks))
    style.index_axis(axes.xaxis, blocks[-1])
