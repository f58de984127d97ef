"""The Pareto front of points of which all coordinates are better when lower."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def nondominated(points: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which of the points, an array of shape (n, d), are not dominated; shape (n,).

    A point is dominated if another is at most as large in every coordinate and smaller in one. Equal points do not
    dominate each other. A point with a NaN is not on the front, and dominates none.
    """
    at_most = np.all(points[:, None, :] <= points[None, :, :], axis=2)  # NaN compares as False
    below = np.any(points[:, None, :] < points[None, :, :], axis=2)
    dominated = np.any(at_most & below, axis=0)
    return np.asarray(~dominated & ~np.any(np.isnan(points), axis=1))
