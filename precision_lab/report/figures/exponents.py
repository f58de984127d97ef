"""Where the values of the residual streams lie: the share of each binade, block by block, and the ends of formats."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm

from precision_lab.numerics.formats import REDUCED_FORMATS
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Drawing
from precision_lab.report.view import View, block_outputs, heading, main_branch

TITLE = "Where the values lie: exponents over the blocks"
SHORT = {"float16": "fp16", "bfloat16": "bf16", "float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2"}
COLOURS = "viridis"
LEAST_SHARE = 1e-5
CAPTION = (
    "Share of a residual stream's non-zero finite values in each binade 2^e to 2^(e+1) (vertical) as it leaves each "
    "block (horizontal), in {variant}{branch}; all steps, prompts and seeds counted together, log colour scale."
)
ENDS = {
    True: "Solid lines: the largest number of a format, above which values overflow.",
    False: "Dashed lines: the smallest subnormal number of a format, below which values become zero.",
}
"""On the lines at the tops of formats, and on those at their other ends."""


def draw(view: View) -> Drawing | None:
    """The exponents of the reference, or of the first variant with any; None where no block output was counted."""
    table = view.run.tables["exponents"]
    if table.empty:
        return None
    layout = view.layout
    rows = main_branch(table.assign(branch=table["branch"].fillna("")), layout)
    streams = {name: block_outputs(rows, layout, name) for name in layout.streams}
    counted = {str(name) for own in streams.values() for name in own["variant"].unique()}
    variant = next((name for name in view.variants if name in counted), None)
    if variant is None:
        return None
    own_rows = {name: own[own["variant"] == variant] for name, own in streams.items()}
    shares = {name: _shares(own) for name, own in own_rows.items() if len(own)}
    lowest = min(share.index.min() for share in shares.values())
    highest = max(share.index.max() for share in shares.values()) + 1

    figure = style.new_figure(3.6, wspace=0.03)
    grid = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    norm = LogNorm(LEAST_SHARE, 1)
    lines = _ends()
    beyond = [f"{name} 2^{at:.0f}" for name, at in lines if not lowest - 4 <= at <= highest + 4]
    shown = [(name, at) for name, at in lines if lowest - 4 <= at <= highest + 4]
    for axes, (name, share) in zip(grid, shares.items(), strict=True):
        _draw_share(axes, share, norm)
        axes.set_title(heading(layout.streams[name]))
        low, high = (min([lowest, *(at for _, at in shown)]) - 1, max([highest, *(at for _, at in shown)]) + 1)
        axes.set_ylim(low, high)
        _mark(axes, shown)
    grid[0].set_ylabel("log₂ |value|")
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=grid, aspect=30, pad=0.02, label="share of values")
    bar.outline.set_visible(False)
    caption = [CAPTION.format(variant=variant, branch=view.in_branch)]
    caption += [words for top, words in ENDS.items() if any(_is_top(name) == top for name, _ in shown)]
    if beyond:
        caption.append(f"Off the axis: {', '.join(beyond)}.")
    return Drawing("exponents", TITLE, figure, " ".join(caption))


def _shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Share of values by exponent (down) and block (across); every block and exponent in between has its place."""
    counts = rows.pivot_table(index="exponent", columns="block", values="count", aggfunc="sum", fill_value=0)
    counts.columns = counts.columns.astype(int)
    shares = counts.astype(float) / counts.sum().astype(float)
    exponents = range(int(counts.index.min()), int(counts.index.max()) + 1)
    return shares.reindex(exponents, fill_value=0.0).reindex(columns=range(int(counts.columns.max()) + 1))


def _draw_share(axes: Axes, share: pd.DataFrame, norm: LogNorm) -> None:
    values = np.ma.masked_invalid(share.where(share > 0).to_numpy())
    last, low, high = len(share.columns) - 1, int(share.index[0]), int(share.index[-1]) + 1
    place = (-0.5, last + 0.5, low, high)
    axes.imshow(
        values, norm=norm, cmap=COLOURS, aspect="auto", interpolation="none", extent=place, origin="lower", zorder=1
    )
    axes.set_xlabel("block")
    style.index_axis(axes.xaxis, last)


def _ends() -> list[tuple[str, float]]:
    """log2 of the largest number and of the smallest subnormal of each reduced format."""
    tops = [(f"{SHORT[fmt.name]} max", float(np.log2(fmt.max))) for fmt in REDUCED_FORMATS]
    return tops + [(f"{SHORT[fmt.name]} min", float(np.log2(fmt.smallest_subnormal))) for fmt in REDUCED_FORMATS]


def _is_top(name: str) -> bool:
    return name.endswith("max")


def _mark(axes: Axes, lines: list[tuple[str, float]]) -> None:
    """Lines at the ends of formats; those that fall together share a label."""
    places: dict[int, list[tuple[str, float]]] = {}
    for name, at in lines:
        places.setdefault(round(at), []).append((name, at))
    for together in places.values():
        at = together[0][1]
        top = _is_top(together[0][0])
        axes.axhline(at, color=style.MUTED, linewidth=0.9, linestyle="-" if top else (0, (4, 3)), zorder=2)
        label = ", ".join(name for name, _ in together)
        x, side = (0.012, "left") if top else (0.988, "right")  # where the streams are not
        axes.annotate(
            label,
            (x, at),
            (0, 2),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha=side,
            fontsize=8,
            color=style.MUTED,
            zorder=3,
        )
