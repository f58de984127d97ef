"""Sensitivity as a map: the error of the model's output for each operation of each block, one panel a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.patches import Patch, Rectangle

from precision_lab.analysis.sensitivity import candidates_of, ranking
from precision_lab.record.scan import Scan
from precision_lab.report.figures import labels, style
from precision_lab.report.figures.style import Absent, Drawing

TITLE = "Sensitivity by block and operation"
COLOURS = "viridis"
NONFINITE = "#D55E00"
EXACT = "white"
UNMEASURED: Any = {"facecolor": "#f1f1f1", "edgecolor": "#b5b5b5", "hatch": "////", "linewidth": 0}
CAPTION = (
    "Relative L2 error of the model's output, in the main branch, with a candidate at one operation of one block; "
    "geometric mean over {steps} and {cases}.{scale}{outside} The noise floor of rounding {floor}.{hatched}"
)
ONE_SCALE = " All panels have one colour scale."
OUTSIDE = " On the right: modules outside of the blocks."
HATCHED = " Hatched: the candidate does not fit, or there is no such operation."
_ROW, _MARGIN = 0.155, 0.6

Cells = npt.NDArray[np.float64]


def draw(scan: Scan) -> Drawing | Absent:
    """The map of a scan. Absent if no group is one operation of one block."""
    table = scan.sensitivity
    inside = table[table["block"].notna() & table["operation"].notna()]
    if inside.empty:
        return Absent(TITLE, "No group of this scan is one operation of one block: by=[operation,block] has a map.")
    operations = list(dict.fromkeys(inside["operation"]))
    outside = list(dict.fromkeys(table.loc[table["block"].isna() & table["operation"].notna(), "operation"]))
    blocks = list(range(int(inside["block"].min()), int(inside["block"].max()) + 1))
    candidates = candidates_of(table)
    ranked = {name: ranking(table, name) for name in candidates}
    norm = _norm(table, list(ranked.values()))
    titles = labels.distinct(candidates, 60)

    rows = max(len(operations), len(outside))
    figure = style.new_figure(0.7 + len(candidates) * (_ROW * rows + _MARGIN), hspace=0.02, wspace=0.02, w_pad=0.1)
    ratios = [1.0, 0.03] if outside else [1.0]
    grid = figure.subplots(len(candidates), len(ratios), squeeze=False, width_ratios=ratios)
    hatched = False
    for axes, name in zip(grid, candidates, strict=True):
        own = ranked[name]
        rows_named = [operation or "block" for operation in operations]
        hatched |= _draw_cells(axes[0], _cells(own, "block", blocks, operations), norm, rows_named, blocks[0])
        axes[0].set_title(titles[name])
        if outside:
            hatched |= _draw_outside(axes[1], own, outside, norm)
    grid[-1, 0].set_xlabel("block")
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=grid, aspect=40, pad=0.025)
    bar.set_label("relative L2 error of the output")
    bar.outline.set_visible(False)
    errors = pd.concat([own["velocity_error"] for own in ranked.values()])
    marks = {
        "output not finite": (NONFINITE, np.isposinf(errors).any()),
        "exactly the plain model's output": (EXACT, (errors == 0).any()),
    }
    handles = {
        name: Patch(facecolor=colour, edgecolor=style.MUTED) for name, (colour, is_there) in marks.items() if is_there
    }
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=2, borderaxespad=0.2)
    caption = _caption(scan, len(candidates) > 1, bool(outside), hatched)
    return Drawing("sensitivity", TITLE, figure, caption, inline="png")


def _norm(table: pd.DataFrame, ranked: Sequence[pd.DataFrame]) -> LogNorm:
    errors = np.concatenate([own["velocity_error"].to_numpy(float) for own in ranked])
    errors = errors[np.isfinite(errors) & (errors > 0)]
    low, high = (errors.min(), errors.max()) if errors.size else (1e-6, 1.0)
    return LogNorm(low, max(high, 1.5 * low))


def _cells(ranked: pd.DataFrame, key: str, blocks: Sequence[int], operations: Sequence[str]) -> Cells:
    """The errors (operations, blocks): infinite where not finite, NaN where not measured."""
    found = ranked[ranked["block"].notna() & ranked["operation"].notna()]
    table = found.pivot_table(index="operation", columns=key, values="velocity_error", aggfunc="max", dropna=False)
    cells: Cells = table.reindex(index=list(operations), columns=list(blocks)).to_numpy(float)
    return cells


def _draw_cells(axes: Axes, cells: Cells, norm: LogNorm, names: Sequence[str], first: int) -> bool:
    """Returns whether a cell was not measured, so that the hatching of the panel is seen."""
    count, width = cells.shape
    place = (first - 0.5, first + width - 0.5, count - 0.5, -0.5)
    axes.patch.set(**UNMEASURED)
    axes.imshow(np.ma.masked_invalid(cells), norm=norm, cmap=COLOURS, aspect="auto", interpolation="none", extent=place)
    for colour, marked in ((NONFINITE, np.isposinf(cells)), (EXACT, cells == 0)):
        for row, column in zip(*np.nonzero(marked), strict=True):
            corner = first + column - 0.5, row - 0.5
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, edgecolor=style.FAINT, linewidth=0.6))
    axes.set_yticks(range(count), names, fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    style.index_axis(axes.xaxis, first + width - 1, 12)
    axes.set(xlim=place[:2], ylim=place[2:])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return bool(np.isnan(cells).any())


def _draw_outside(axes: Axes, ranked: pd.DataFrame, outside: Sequence[str], norm: LogNorm) -> bool:
    found = ranked[ranked["block"].isna()].drop_duplicates("operation").set_index("operation")["velocity_error"]
    short = labels.distinct(outside, 27)
    cells = found.reindex(list(outside)).to_numpy(float)[:, None]
    hatched = _draw_cells(axes, cells, norm, list(short.values()), 0)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    return hatched


def _caption(scan: Scan, several: bool, outside: bool, hatched: bool) -> str:
    table = scan.sensitivity
    steps = [str(step) for step in sorted(table["step"].unique())]
    count = len(table[["prompt_id", "seed"]].drop_duplicates())
    floor = table["noise_floor"].max()
    return CAPTION.format(
        steps=f"step{'s' * (len(steps) > 1)} {', '.join(steps)}",
        cases="one case" if count == 1 else f"{count} cases",
        floor="was not measured" if pd.isna(floor) else f"is at most {style.plain(float(f'{floor:.1e}'))}",
        scale=ONE_SCALE if several else "",
        outside=OUTSIDE if outside else "",
        hatched=HATCHED if hatched else "",
    )
