"""What a search found, from its tables: recipes with intervals, the Pareto front, and ties that are called ties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from precision_lab.analysis.search.additivity import Additivity, additivity
from precision_lab.numerics.intervals import LEAST_GROUPS, geometric_mean_ratio, mean_interval
from precision_lab.numerics.pareto import nondominated

ALIKE = 0.005
"""Two recipes whose bytes differ by no more than this share are of one size."""

Order = Literal["less", "more", "tie"]


@dataclass(frozen=True)
class Result:
    """A recipe. drift: the geometric mean over the cases of the search, held_out that over cases it has not seen.

    lo, hi: the 95 % interval of held_out over prompts, NaN with fewer than three. psnr_db: the median over held-out
    cases. predicted: NaN where nothing predicts it. on_front: whether no other recipe dominates it in bytes and
    held-out drift, as they are measured. error: what its trial raised.
    """

    name: str
    strategy: str
    budget: str
    nbytes: int
    bits: float
    predicted: float
    drift: float
    held_out: float
    lo: float
    hi: float
    psnr_db: float
    num_nonfinite: int
    on_front: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Comparison:
    """A found recipe against another one of its size or budget, on the held-out cases.

    ratio: of its drift to the other's, the geometric mean with its 95 % interval; order: what that says, a tie within
    the interval or the noise.
    """

    recipe: str
    other: str
    ratio: float
    lo: float
    hi: float
    order: Order

    @property
    def words(self) -> str:
        """A sentence."""
        interval = "" if math.isnan(self.lo) else f", 95 % interval {self.lo:.3f} to {self.hi:.3f}"
        size = f"{self.ratio:.3f} times the drift of {self.other}{interval}"
        if self.order == "tie":
            return f"{self.recipe} and {self.other} tie: {size}"
        return f"{self.recipe} drifts {self.order} than {self.other}: {size}"


def results(recipes: pd.DataFrame) -> list[Result]:
    """The recipes of a table `search_recipes`, in its order."""
    found = [_result(str(name), rows) for name, rows in recipes.groupby("recipe", sort=False)]
    points = np.array([[each.nbytes, each.held_out] for each in found], dtype=np.float64)
    front = nondominated(points) if len(found) else np.zeros(0, bool)
    return [Result(**{**vars(each), "on_front": bool(on)}) for each, on in zip(found, front, strict=True)]


def comparisons(recipes: pd.DataFrame, name: str, noise_floor: float) -> list[Comparison]:
    """A recipe against those of its budget, and against all others whose size is its own or smaller by no more."""
    of_all = {each.name: each for each in results(recipes)}
    mine = of_all[name]
    others = [
        other
        for other in of_all.values()
        if other.name != name
        and other.held_out > 0
        and ((other.budget == mine.budget != "-") or abs(other.nbytes / mine.nbytes - 1) <= ALIKE)
    ]
    return [compared(recipes, name, other.name, noise_floor) for other in others]


def compared(recipes: pd.DataFrame, name: str, other: str, noise_floor: float) -> Comparison:
    """Two recipes on the held-out cases. Identical recipes tie; so do those that are not finite."""
    mine, theirs = (_held_out(recipes, each) for each in (name, other))
    both = pd.concat({"mine": mine, "theirs": theirs}, axis="columns").dropna()
    ratio = geometric_mean_ratio(both["mine"], both["theirs"], both.index.get_level_values("prompt_id"))
    if not math.isfinite(ratio.estimate):
        return Comparison(name, other, math.nan, math.nan, math.nan, "tie")
    within = abs(math.log(ratio.estimate)) <= math.log1p(noise_floor)
    if within or not (ratio.lo > 1 or ratio.hi < 1):
        return Comparison(name, other, ratio.estimate, ratio.lo, ratio.hi, "tie")
    order: Order = "less" if ratio.estimate < 1 else "more"
    return Comparison(name, other, ratio.estimate, ratio.lo, ratio.hi, order)


def additivity_of(found: Sequence[Result]) -> Additivity:
    """The recipes that have a prediction, against their drift in the cases of the search."""
    own = [each for each in found if each.predicted > 0]
    return additivity([each.predicted for each in own], [each.drift for each in own])


def _result(name: str, rows: pd.DataFrame) -> Result:
    first = rows.iloc[0]
    seen, unseen = rows[~rows["held_out"]], rows[rows["held_out"]]
    lo, hi = _interval(unseen)
    return Result(
        name=name,
        strategy=str(first["strategy"]),
        budget=str(first["budget"]),
        nbytes=int(first["bytes"]),
        bits=float(first["bits_per_weight"]),
        predicted=float(first["predicted"]),
        drift=_mean(seen["rel_l2"]),
        held_out=_mean(unseen["rel_l2"]),
        lo=lo,
        hi=hi,
        psnr_db=float(unseen["psnr_db"].median(skipna=False)) if len(unseen) else math.nan,
        num_nonfinite=int(rows["num_nonfinite"].fillna(0).sum()),
        error=None if pd.isna(first["error"]) else str(first["error"]),
    )


def _mean(drifts: pd.Series) -> float:
    """The geometric mean; 0 if one is 0, NaN if one is not finite or there are none."""
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(drifts.to_numpy(dtype=np.float64)).mean())) if len(drifts) else math.nan


def _interval(rows: pd.DataFrame) -> tuple[float, float]:
    """The 95 % interval of the geometric mean over prompts."""
    drifts = rows.set_index("prompt_id")["rel_l2"].astype(float)
    if not (drifts > 0).all():
        return math.nan, math.nan
    means = drifts.map(math.log).groupby(level=0).mean().to_numpy()
    if len(means) < LEAST_GROUPS:
        return math.nan, math.nan
    lo, hi = mean_interval(means, 0.95)
    return float(np.exp(lo)), float(np.exp(hi))


def _held_out(recipes: pd.DataFrame, name: str) -> pd.Series:
    rows = recipes[(recipes["recipe"] == name) & recipes["held_out"]]
    return rows.set_index(["prompt_id", "seed"])["rel_l2"].astype(float)
