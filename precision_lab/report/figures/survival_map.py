"""What arrives by block and operation, for one format."""

from __future__ import annotations

import numpy as np
import pandas as pd

from precision_lab.report.figures import style
from precision_lab.report.figures.style import Absent, Drawing

TITLE = "What arrives, by block and operation"
COLOURS = "viridis"
CAPTION = "Correlation of what arrives with what was meant in {name}, fused {order} quantising, rounded {rounding}."
LEAST = " Of all formats and orders, the median is least here."
WHITE = " White: no linear, or its correlation is not defined."
ROUNDED = {"nearest": "to nearest", "stochastic": "stochastically"}


def draw(table: pd.DataFrame) -> Drawing | Absent:
    """table: survival.parquet. Absent if no linear is inside of a block."""
    inside = table[table["block"].notna() & table["correlation"].notna()]
    if inside.empty:
        return Absent(TITLE, "No linear inside of a block has a correlation.")
    rounding = str(inside["rounding"].iloc[0])
    inside = inside[inside["rounding"] == rounding]
    medians = {
        (str(key[0]), str(key[1])): float(own["correlation"].median())
        for key, own in inside.groupby(["format", "order"], sort=False)
    }
    name, order = min(medians, key=lambda key: medians[key])
    own = inside[(inside["format"] == name) & (inside["order"] == order)]
    operations = list(dict.fromkeys(own["operation"]))
    blocks = list(range(int(own["block"].min()), int(own["block"].max()) + 1))
    cells = own.pivot_table(index="operation", columns="block", values="correlation", aggfunc="min")
    cells = cells.reindex(index=operations, columns=blocks)
    figure = style.new_figure(1.1 + 0.2 * len(operations))
    axes = figure.subplots()
    low, high = float(np.nanmin(cells.to_numpy(float))), float(np.nanmax(cells.to_numpy(float)))
    image = axes.imshow(
        np.ma.masked_invalid(cells.to_numpy(float)),
        cmap=COLOURS,
        vmin=min(low, high - 1e-3),
        vmax=high,
        aspect="auto",
        interpolation="none",
        extent=(blocks[0] - 0.5, blocks[-1] + 0.5, len(operations) - 0.5, -0.5),
    )
    axes.set_yticks(range(len(operations)), operations, fontsize=8)
    axes.tick_params(axis="y", length=0)
    style.index_axis(axes.xaxis, blocks[-1], 12)
    axes.set_xlim(blocks[0] - 0.5, blocks[-1] + 0.5)
    axes.set_xlabel("block")
    axes.set_title(f"{name}, fused {order}")
    bar = figure.colorbar(image, ax=axes, aspect=30, pad=0.02)
    bar.set_label("correlation")
    bar.outline.set_visible(False)
    caption = CAPTION.format(name=name, order=order, rounding=ROUNDED[rounding])
    caption += LEAST if len(medians) > 1 else ""
    caption += WHITE if cells.isna().any(axis=None) else ""
    return Drawing("survival_map", TITLE, figure, caption, inline="png")
