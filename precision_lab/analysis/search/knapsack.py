"""The choice that is best by the predictions: a multiple-choice knapsack (Sinha and Zoltners 1979,
doi:10.1287/opre.27.3.503), one option of each group, whose predicted errors add up.

HiGHS solves it as an integer program (Huangfu and Hall 2018, doi:10.1007/s12532-017-0130-5) and proves a bound that no
choice is below, so that the distance of the result from the optimum is known. A greedy rule has no such bound, and a
dynamic program over bytes has rounded ones, and no second limit such as time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from precision_lab.analysis.search.menu import Choice, Menu, columns

_GAP = 1e-4
"""The relative distance from the proven bound at which the solver stops; the predictions are far less exact."""

_NODES = 20_000
"""The most nodes of the solver's tree; a limit of time would make the result depend on the machine."""

_SHORTFALLS = (0.0, 1e-6, 1e-5, 1e-4)
"""By how much the solver's limits are lower, tried in turn: it is content within 1e-6 of a limit, a budget is not."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """A choice within all limits. bound: that no choice within them is below, in the unit of what is minimised."""

    choice: Choice
    value: float
    bound: float

    @property
    def gap(self) -> float:
        """The proven relative distance from the optimum, 0 for one that is proven to be optimal."""
        return max(0.0, (self.value - self.bound) / self.value) if self.value > 0 else 0.0


def least_error(menu: Menu, nbytes: int | None = None, seconds: float | None = None) -> Solution | None:
    """The choice with the least predicted squared error within limits of bytes and time; None if none is within them.

    seconds: see `Menu.seconds`; an option whose time was not measured is then left out.
    """
    limits = [] if nbytes is None else [_Limit(_sizes(menu), nbytes - menu.fixed)]
    if seconds is not None:
        limits.append(_Limit(_times(menu), seconds))
    choice, bound = _solved(menu, columns(menu)[1], limits) or (None, 0.0)
    return None if choice is None else Solution(choice, menu.error(choice), bound)


def least_bytes(menu: Menu, error: float, seconds: float | None = None) -> Solution | None:
    """The choice with the fewest bytes whose predicted squared error is at most `error`; None if there is none."""
    limits = [_Limit(columns(menu)[1], error)]
    if seconds is not None:
        limits.append(_Limit(_times(menu), seconds))
    choice, bound = _solved(menu, _sizes(menu), limits) or (None, 0.0)
    return None if choice is None else Solution(choice, float(menu.nbytes(choice)), bound + menu.fixed)


@dataclass(frozen=True)
class _Limit:
    """What the sum of the chosen options' values, shape (options,), may be at most."""

    values: Floats
    most: float

    def allowed(self, place: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """The options that are within the limit if every other place has its least value; an unknown value is not."""
        values = np.where(np.isnan(self.values), np.inf, self.values)
        least = np.full(place.max() + 1, np.inf)
        np.minimum.at(least, place, values)
        with np.errstate(invalid="ignore"):
            return np.asarray(least.sum() - least[place] + values <= self.most + 1e-12 * abs(self.most))

    def row(self, unit: float, shortfall: float) -> LinearConstraint:
        """As a constraint of the solver in units of `unit`, with the limit lower by the relative `shortfall`."""
        most = self.most / unit
        return LinearConstraint(np.nan_to_num(self.values)[None, :] / unit, -np.inf, most - shortfall * abs(most))


def _solved(menu: Menu, objective: Floats, limits: list[_Limit]) -> tuple[Choice, float] | None:
    """The options that minimise the sum of `objective` within the limits, and a bound below the optimum."""
    place = columns(menu)[2]
    number = np.arange(len(place))
    allowed = np.logical_and.reduce([limit.allowed(place) for limit in limits])
    scale = _largest_sum(objective, place)
    one_of_each = LinearConstraint(csr_array((np.ones(len(place)), (place, number))), 1, 1)
    first = np.searchsorted(place, np.arange(len(menu.places)))
    bound = -math.inf
    for shortfall in _SHORTFALLS:
        rows = [one_of_each, *(limit.row(_largest_sum(limit.values, place), shortfall) for limit in limits)]
        found = milp(
            objective / scale,
            integrality=np.ones(len(place)),
            bounds=Bounds(0, allowed.astype(np.float64)),
            constraints=rows,
            options={"mip_rel_gap": _GAP, "node_limit": _NODES},
        )
        if shortfall == 0 and found.mip_dual_bound is not None:
            bound = float(found.mip_dual_bound) * scale
        if found.x is None:
            return None
        chosen = np.round(found.x).astype(bool)
        if all(math.fsum(limit.values[chosen]) <= limit.most for limit in limits):
            return tuple(int(at) for at in np.flatnonzero(chosen) - first), bound
    return None


def _largest_sum(values: Floats, place: npt.NDArray[np.int64]) -> float:
    """The largest that a choice can make of the magnitudes, as a scale; 1 where all are 0."""
    largest = np.zeros(place.max() + 1)
    np.maximum.at(largest, place, np.nan_to_num(np.abs(values)))
    return float(largest.sum()) or 1.0


def _sizes(menu: Menu) -> Floats:
    return columns(menu)[0].astype(np.float64)


def _times(menu: Menu) -> Floats:
    return np.array([option.seconds for own in menu.options for option in own], dtype=np.float64)
