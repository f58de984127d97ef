"""The modules in which values that are not finite arose, where the baseline has none.

The bands hold recorded sites only, and those show a NaN or an infinity after the module that caused it.
"""

from __future__ import annotations

import pandas as pd

from precision_lab.analysis.gate.rows import case_labels, located, violations_of
from precision_lab.analysis.gate.violation import Violation
from precision_lab.record.layout import Layout


def arisen(nonfinite: pd.DataFrame, bands: pd.DataFrame, layout: Layout) -> list[Violation]:
    """One violation for each such module of a variant whose bands hold no non-finite value, read before its effects.

    nonfinite: the table of a run; bands: as `bands.learn` returns them.
    """
    worst = bands.groupby("variant")["num_nonfinite_max"].max()
    sound = set(worst.index[worst == 0])
    rows = nonfinite[nonfinite["variant"].isin(sound) & nonfinite["inputs_finite"].eq(True).fillna(False)]
    if rows.empty:
        return []
    before = rows.assign(order=rows["order"].fillna(0).astype("int64") - 1)  # than the first array that showed it
    bad = located(before.reset_index(drop=True))
    counts = rows["num_nan"].astype(int) + rows["num_inf"].astype(int)
    bad = bad.assign(case=case_labels(before), expected="0", got=counts.astype(str).to_numpy(), magnitude=float("inf"))
    bad = bad.sort_values("order", kind="stable")
    return violations_of(bad, "nonfinite", "arose with finite inputs", layout)
