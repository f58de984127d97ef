"""Predictions against measurements: whether the errors of groups add up as the knapsack assumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from precision_lab.numerics.intervals import LEAST_GROUPS, mean_interval

_ALIKE = 1.25
"""A factor within which a prediction counts as met."""


@dataclass(frozen=True)
class Additivity:
    """The measured drift of recipes divided by the predicted one.

    factor: the geometric mean, with its 95 % interval lo to hi, NaN with fewer than three recipes. spread: the largest
    deviation of one recipe from it, as a factor of at least 1. number: of recipes.
    """

    factor: float
    lo: float
    hi: float
    spread: float
    number: int

    @property
    def words(self) -> str:
        """A sentence or two on it."""
        if not self.number:
            return "No recipe has both a predicted and a measured drift, so additivity was not checked."
        size = f"{self.factor:.2f} times the predicted drift, within a factor of {self.spread:.2f} for every recipe"
        said = f"The {self.number} recipes drift {size}."
        if self.spread <= _ALIKE:
            order = "One factor explains all, so that the predictions rank recipes as the measurements do."
        else:
            order = "No one factor explains all: they add up differently in different recipes."
        if self.factor > _ALIKE:
            return f"{said} Errors reinforce each other, or grow over the steps. {order}"
        if self.factor < 1 / _ALIKE:
            return f"{said} Errors cancel each other, or fade over the steps. {order}"
        return f"{said} On average the squared errors of groups add up. {order}"


def additivity(predicted: Sequence[float], measured: Sequence[float]) -> Additivity:
    """Compares the two, each (n,) by recipe. Pairs that are not positive and finite are left out."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.asarray(measured, dtype=np.float64) / np.asarray(predicted, dtype=np.float64))
    logs = logs[np.isfinite(logs)]
    if not logs.size:
        return Additivity(math.nan, math.nan, math.nan, math.nan, 0)
    lo, hi = map(float, mean_interval(logs, 0.95)) if logs.size >= LEAST_GROUPS else (math.nan, math.nan)
    mean = float(logs.mean())
    spread = float(np.exp(np.abs(logs - mean).max()))
    return Additivity(math.exp(mean), math.exp(lo), math.exp(hi), spread, int(logs.size))
