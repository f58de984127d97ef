"""Ranks groups of sites by what a candidate does to the model's output, and says which cannot be told apart.

The score of a group is the geometric mean, over the measured steps and cases, of the relative error of the output.
Errors below the noise floor, the largest of all operations in that step and case, count as the floor. Two groups tie if

- the difference of their scores is at most the mean of the floor, or
- the 95 % interval of the mean of their log ratios contains 0. The pairs are the prompts, if there are at least
  `LEAST_GROUPS`, else the steps of the cases; with fewer pairs there is no interval, and only the noise decides.

A candidate that makes the output non-finite comes first; such groups tie with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from precision_lab.numerics.intervals import LEAST_GROUPS, mean_interval

CONFIDENCE = 0.95
_TINY = 1e-30
"""In place of the floor where no noise was measured; a ratio needs positive numbers."""

Units = Literal["prompts", "steps", "none"]
Floats = npt.NDArray[np.float64]

COLUMNS = (
    "rank",
    "tied",
    "group",
    "component",
    "block",
    "operation",
    "stream",
    "local_error",
    "velocity_error",
    "noise_floor",
    "num_nonfinite",
    "free_drift",
    "bytes_saved",
    "seconds_saved",
)


def candidates_of(table: pd.DataFrame) -> list[str]:
    """The candidates in the order in which they were given."""
    return [str(name) for name in table["candidate"].unique()]


def units_of(table: pd.DataFrame) -> Units:
    """What the pairs of an interval are."""
    if table["prompt_id"].nunique() >= LEAST_GROUPS:
        return "prompts"
    pairs = len(table[["prompt_id", "seed", "step"]].drop_duplicates())
    return "steps" if pairs >= LEAST_GROUPS else "none"


def ranking(table: pd.DataFrame, candidate: str) -> pd.DataFrame:
    """The groups of a candidate with `COLUMNS`, the most sensitive first; those that tie have the same rank.

    table: the table `sensitivity` of a scan. rank: 1 for the first, then the place of the first group of each tie.
    tied: with how many others a group shares its rank. velocity_error: the score, infinite where the output is not
    finite. The other measurements are means over steps and cases; num_nonfinite is their sum.
    """
    rows = table[table["candidate"] == candidate]
    errors, floor = _errors(rows)
    scores = np.exp(np.log(errors).mean(axis=1))
    order = np.argsort(-scores, kind="stable")
    ranks = _ranks(errors[order], scores[order], floor, units_of(rows))
    means = rows.groupby("group", sort=False).agg(
        component=("component", "first"),
        block=("block", "first"),
        operation=("operation", "first"),
        stream=("stream", "first"),
        local_error=("local_error", "mean"),
        noise_floor=("noise_floor", "mean"),
        num_nonfinite=("num_nonfinite", "sum"),
        free_drift=("free_drift", "mean"),
        bytes_saved=("bytes_saved", "first"),
        seconds_saved=("seconds_saved", "mean"),
    )
    found = means.iloc[order].reset_index()
    found["velocity_error"] = np.where(_exact(rows)[order], 0.0, scores[order])
    found["rank"] = ranks
    found["tied"] = found.groupby("rank")["rank"].transform("size") - 1
    return found[list(COLUMNS)]


def chosen(table: pd.DataFrame, count: int) -> list[tuple[str, str]]:
    """Pairs of group and candidate to be confirmed: of each candidate, the `count` first and the `count` last."""
    pairs = []
    for candidate in candidates_of(table):
        groups = [str(group) for group in ranking(table, candidate)["group"]]
        ends = groups if len(groups) <= 2 * count else [*groups[:count], *groups[len(groups) - count :]]
        pairs += [(group, candidate) for group in ends]
    return pairs


def _errors(rows: pd.DataFrame) -> tuple[Floats, float]:
    """The errors (groups, pairs), in the order of the rows and at least the noise floor, and the mean of that."""
    unit = ["prompt_id"] if units_of(rows) == "prompts" else ["prompt_id", "seed", "step"]
    floor = rows.groupby(["prompt_id", "seed", "step"])["noise_floor"].transform("max").fillna(0.0).clip(lower=_TINY)
    error = rows["velocity_error"].clip(lower=floor)
    error = error.mask(rows["num_nonfinite"] > 0, np.inf).fillna(floor)  # a zero output has no relative error
    logs = pd.DataFrame({"group": rows["group"], **{name: rows[name] for name in unit}, "log": np.log(error)})
    table = logs.pivot_table(index="group", columns=unit, values="log", aggfunc="mean", sort=False, dropna=False)
    return np.exp(table.reindex(rows["group"].unique()).to_numpy(float)), float(floor.mean())


def _exact(rows: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whether the output was the plain model's, bit for bit, in all steps and cases."""
    largest = rows.groupby("group", sort=False)["velocity_error"].max()
    finite = rows.groupby("group", sort=False)["num_nonfinite"].sum() == 0
    exact: npt.NDArray[np.bool_] = ((largest == 0) & finite).to_numpy(bool)
    return exact


def _ranks(errors: Floats, scores: Floats, floor: float, units: Units) -> Sequence[int]:
    """The rank of each group; errors (groups, pairs) in descending order of `scores`."""
    ranks = np.empty(len(scores), int)
    leader = 0
    while leader < len(scores):
        rest = slice(leader + 1, None)
        tied = _ties(errors[leader], errors[rest], scores[leader], scores[rest], floor, units)
        size = 1 + (len(tied) if tied.all() else int(np.argmin(tied)))
        ranks[leader : leader + size] = leader + 1
        leader += size
    return [int(rank) for rank in ranks]


def _ties(first: Floats, others: Floats, score: Any, scores: Floats, floor: float, units: Units) -> Any:
    """Which of `others` cannot be told from the first."""
    if not np.isfinite(score):
        return ~np.isfinite(scores)
    alike = score - scores <= floor
    if units != "none":
        low, _ = mean_interval(np.log(first) - np.log(others), CONFIDENCE)
        alike |= low <= 0
    return alike
