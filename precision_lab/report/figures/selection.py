"""The choice of variants for a crowded figure: those that differ most from each other."""

from __future__ import annotations

import numpy as np
import pandas as pd


def drift_profiles(rows: pd.DataFrame) -> pd.DataFrame:
    """log10 of the drift of the result, variants down and steps across. rows: of `view.results`, free-running.

    Median over prompts and seeds. A value that is not finite counts as a decade above the greatest, an error of zero
    as a decade below the least.
    """
    worst = rows.assign(rel_l2=rows["rel_l2"].fillna(np.inf))
    medians = worst.pivot_table(index="variant", columns="step", values="rel_l2", aggfunc="median", sort=False)
    positive = medians.to_numpy()[(medians > 0) & np.isfinite(medians)]
    least, greatest = (positive.min(), positive.max()) if positive.size else (1.0, 1.0)
    return medians.clip(least / 10, greatest * 10).map(np.log10)


def farthest_first(profiles: pd.DataFrame, first: str, count: int) -> list[str]:
    """`first` and up to `count` - 1 other rows, each the farthest from all before it (mean absolute difference).

    Gonzalez 1985, Clustering to minimize the maximum intercluster distance; of equals the one that comes first.
    """
    values = profiles.to_numpy(float)
    chosen = [list(profiles.index).index(first)]
    nearest = np.full(len(values), np.inf)
    while len(chosen) < min(count, len(values)):
        nearest = np.minimum(nearest, np.abs(values - values[chosen[-1]]).mean(axis=1))
        nearest[chosen] = -1.0
        chosen.append(int(np.argmax(nearest)))
    return [str(profiles.index[at]) for at in chosen]
