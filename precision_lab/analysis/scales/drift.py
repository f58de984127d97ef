"""Drift of a variant over several runs with the same variants and other settings of the cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from precision_lab.analysis.decision import INCONCLUSIVE, decide
from precision_lab.analysis.measures import final_drift
from precision_lab.analysis.ratios import PROMPT, noise_floor, over_units
from precision_lab.numerics.intervals import LEAST_GROUPS
from precision_lab.record.run import Run


def drifts(runs: Mapping[str, Run], variant: str) -> pd.Series:
    """rel_l2 of the last result by case, indexed by prompt, set and seed; NaN for a case that is not finite.

    The level of the prompts is called prompt_id and holds their text, which all runs share.
    """
    found = []
    for name, run in runs.items():
        values = final_drift(run, variant)
        prompts = [run.manifest.prompts[number] for number in values.index.get_level_values("prompt_id")]
        keys = [
            (prompt, name, seed) for prompt, seed in zip(prompts, values.index.get_level_values("seed"), strict=True)
        ]
        index = pd.MultiIndex.from_tuples(keys, names=[PROMPT, "set", "seed"])
        found.append(pd.Series(values.to_numpy(float), index))
    return pd.concat(found)


def compared(runs: Mapping[str, Run], subject: str, others: Sequence[str], noise: str | None = None) -> pd.DataFrame:
    """Whether `subject` drifts no more than each of `others`, over all cases of all runs.

    noise: a variant that is the same function as the baseline of the runs, so that they differ by rounding alone.

    Columns: against; `finite`, in how many of the `cases` its drift is finite; its median `drift`; `ratio` of the
    subject's drift to its own with the interval `lo`, `hi` over prompts; `floor`, the noise floor; `verdict` and
    `reason`. A variant with a case that is not finite has no ratio.
    """
    own = drifts(runs, subject)
    baseline = next(iter(runs.values())).manifest.baseline
    floor = noise_floor(drifts(runs, noise), drifts(runs, baseline)) if noise else math.nan
    return pd.DataFrame([_row(own, drifts(runs, name), name, floor) for name in others])


def _row(own: pd.Series, other: pd.Series, name: str, floor: float) -> dict[str, object]:
    finite = int(np.isfinite(other).sum())
    row = {"against": name, "finite": finite, "cases": len(other), "drift": float(other.median(skipna=False))}
    ratio = over_units(own, other)
    row |= {"ratio": ratio.estimate, "lo": ratio.lo, "hi": ratio.hi, "floor": floor}
    if finite < len(other):
        return {**row, "verdict": "no comparison", "reason": f"{len(other) - finite} cases of {name} are not finite"}
    if not math.isfinite(ratio.estimate):
        return {**row, "verdict": INCONCLUSIVE, "reason": "the drift is zero or not finite"}
    if math.isnan(ratio.lo):
        count = own.index.unique(PROMPT).size
        return {**row, "verdict": INCONCLUSIVE, "reason": f"too few prompts: {count}, expected at least {LEAST_GROUPS}"}
    return {**row, "verdict": decide("not_larger", ratio.lo, ratio.hi, 0.0, floor), "reason": ""}
