"""How a search for culprits went: the number of spared groups of each run, and whether the criterion held."""

from __future__ import annotations

import pandas as pd
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

from precision_lab.record.culprits import Culprits
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Drawing

CAPTION = "Each point is a run: the number of groups that were spared in it{scale}.{held}{checks}"
SCALE = ", on a scale that is linear up to 10 and logarithmic above"
HELD = {
    (True, True): " Filled: the criterion holds; open: it does not.",
    (True, False): " The criterion holds in all of them.",
    (False, True): " The criterion holds in none of them.",
}
"""By whether it holds in some run, and whether it fails in some."""
CHECKS = " Runs right of the dashed line tested whether the criterion is monotone and what else will do."
_LINEAR = 10


def draw(trials: pd.DataFrame, found: Culprits) -> Drawing:
    """trials: as the folder of the search holds them."""
    runs = trials[trials["stage"] == "search"].drop_duplicates("run")
    figure = style.new_figure(3.0)
    axes = figure.subplots()
    held = runs["holds"].to_numpy(bool)
    axes.plot(runs["run"] + 1, runs["spared"], color=style.MUTED, linewidth=0.6, zorder=1)
    for which, face, label in ((held, style.PALETTE[0], "holds"), (~held, "white", "does not hold")):
        if not which.any():
            continue
        axes.scatter(
            runs["run"][which] + 1,
            runs["spared"][which],
            s=26,
            facecolor=face,
            edgecolor=style.PALETTE[0],
            zorder=2,
            label=label,
        )
    if found.checks:
        axes.axvline(found.runs + 0.5, color=style.MUTED, linewidth=0.8, linestyle="--")
    axes.set_yscale("symlog", linthresh=_LINEAR)
    axes.yaxis.set_major_locator(FixedLocator(_ticks(found.groups)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.6, 1.25 * max(found.groups, 1) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("run")
    axes.set_ylabel("spared groups")
    figure.legend(loc="outside upper left", ncols=2)  # points may be anywhere
    caption = CAPTION.format(
        scale=SCALE if found.groups > _LINEAR else "",
        held=HELD[bool(held.any()), bool((~held).any())] if len(runs) else "",
        checks=CHECKS if found.checks else "",
    )
    return Drawing("culprits", "The search", figure, caption)


def _ticks(groups: int) -> list[int]:
    """1, 2 and 5 times powers of ten, and 0; on the linear part only 0, 5 and 10."""
    tens = [10**power * digit for power in range(1, len(str(groups))) for digit in (1, 2, 5)]
    return [0, 5, *(tick for tick in tens if tick <= groups)]
