"""What a recipe has where: the candidate of each operation of each block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from precision_lab.analysis.search.menu import AS_STORED
from precision_lab.report.figures import labels, style
from precision_lab.report.figures.style import Absent, Drawing

TITLE = "What the recipes have where"
_ROW = 0.17
_STORED = "#d9d9d9"


def draw(choices: pd.DataFrame, recipes: Sequence[str]) -> Drawing | Absent:
    """One panel for each recipe. Absent if no group is one operation of one block."""
    inside = choices[choices["block"].notna() & choices["operation"].notna() & choices["recipe"].isin(recipes)]
    if inside.empty:
        return Absent(TITLE, "No group of this search is one operation of one block.")
    operations = list(dict.fromkeys(inside["operation"]))
    blocks = range(int(inside["block"].min()), int(inside["block"].max()) + 1)
    candidates = [name for name in dict.fromkeys(choices["candidate"]) if name != AS_STORED]
    names = [AS_STORED, *sorted(candidates)]
    colours = [_STORED, *(style.PALETTE[at % len(style.PALETTE)] for at in range(len(candidates)))]
    codes = {name: at for at, name in enumerate(names)}
    recipes = [name for name in recipes if (inside["recipe"] == name).any()]
    figure = style.new_figure(0.7 + len(recipes) * (_ROW * len(operations) + 0.45), hspace=0.02, w_pad=0.1)
    panels = figure.subplots(len(recipes), 1, squeeze=False)[:, 0]
    titles = labels.distinct(recipes, 60)
    has_gaps = False
    for axes, recipe in zip(panels, recipes, strict=True):
        own = inside[inside["recipe"] == recipe]
        table = own.assign(code=own["candidate"].map(codes)).pivot_table(
            index="operation", columns="block", values="code", aggfunc="max"
        )
        cells = table.reindex(index=operations, columns=list(blocks)).to_numpy(float)
        has_gaps |= bool(np.isnan(cells).any())
        axes.imshow(
            np.ma.masked_invalid(cells),
            cmap=ListedColormap(colours),
            vmin=-0.5,
            vmax=len(names) - 0.5,
            aspect="auto",
            interpolation="none",
            extent=(blocks[0] - 0.5, blocks[-1] + 0.5, len(operations) - 0.5, -0.5),
        )
        axes.set_yticks(range(len(operations)), operations, fontsize=7.5)
        axes.tick_params(axis="y", length=0)
        style.index_axis(axes.xaxis, blocks[-1], 12)
        axes.set_title(titles[recipe])
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    panels[-1].set_xlabel("block")
    present = [name for name in names if (inside["candidate"] == name).any()]
    handles = [Patch(facecolor=colours[codes[name]], edgecolor=style.MUTED) for name in present]
    figure.legend(handles, present, loc="outside upper left", ncols=len(present), borderaxespad=0.2)
    outside = choices[choices["block"].isna() & choices["recipe"].isin(recipes)]
    caption = "The candidate of each operation of each block."
    if has_gaps:
        caption += " White: the block has no such operation that is searched."
    if len(outside):
        caption += " The table search_choices.parquet also lists the modules outside of the blocks."
    return Drawing("map", TITLE, figure, caption, inline="png")
