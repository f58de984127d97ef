"""Claims: log ratios of cases whose prompts have a share in the variance, and the intervals of their mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from precision_lab.numerics.intervals import mean_interval

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
DESIGNS = ((3, 1), (4, 1), (4, 2), (4, 3), (8, 1), (12, 1))
"""Prompts and seeds."""
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)
"""Of the prompts in the variance of the log ratio."""

DISTRIBUTIONS: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], Floats]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "t3": lambda rng, shape: rng.standard_t(3, shape) / 3**0.5,
    "gumbel": lambda rng, shape: (rng.gumbel(size=shape) - np.euler_gamma) / (np.pi / 6**0.5),
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
}
"""Of the logarithms, with mean 0 and variance 1: symmetric, with heavy tails, and with a skewness of 1.1 and of 2."""


def log_ratios(
    rng: np.random.Generator, distribution: str, replications: int, prompts: int, seeds: int, share: float
) -> Floats:
    """(replications, prompts, seeds) log ratios of mean 0; both parts, of prompts and of seeds, have `distribution`."""
    draw = DISTRIBUTIONS[distribution]
    own = draw(rng, (replications, prompts, seeds))
    return share**0.5 * draw(rng, (replications, prompts, 1)) + (1 - share) ** 0.5 * own


def cells(replications: int, seed: int) -> list[dict[str, Any]]:
    """Coverage and median half-width, in standard deviations of a case, of both intervals in every cell."""
    rng = np.random.default_rng(seed)
    found = []
    for distribution in DISTRIBUTIONS:
        for prompts, seeds in DESIGNS:
            for share in SHARES:
                logs = log_ratios(rng, distribution, replications, prompts, seeds, share)
                cell: dict[str, Any] = {
                    "distribution": distribution,
                    "prompts": prompts,
                    "seeds": seeds,
                    "share": share,
                }
                units = {"prompts": logs.mean(axis=-1), "cases": logs.reshape(replications, -1)}
                for name, values in units.items():
                    lo, hi = mean_interval(values, CONFIDENCE)
                    cell[f"{name}_coverage"] = covered(lo, hi)
                    cell[f"{name}_half_width"] = round(float(np.median(hi - lo)) / 2, 3)
                found.append(cell)
    return found


def covered(lo: Floats, hi: Floats) -> float:
    """The share of intervals that contain 0."""
    return round(float(np.mean((lo <= 0) & (hi >= 0))), 4)
