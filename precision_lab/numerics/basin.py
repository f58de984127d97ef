"""Whether a generation ended in another composition than its reference, and at which step it left for it.

Two generations that differ by rounding alone either end in the same composition, with damage such as grain or a shifted
edge, or part and draw something else, which need not be worse. Pixel-wise distances do not tell these apart.

**Whether**: pictures are averaged over square cells, `CELLS` along the shorter side, so that grain and shifts well
below a cell vanish, and correlated after the mean colour is removed. A generation has left if this correlation with its
reference's picture is below (1 + r) / 2, where r is the median correlation of the reference's own pictures of that
prompt over all pairs of seeds. The squared distance of the normalised pictures, 2 (1 - correlation), is then more than
half of that between seeds. If the seeds differ by less than `LEAST_SPREAD`, nothing can be left.

**When**: a flow-matching model goes along straight lines, so the line through two latents of a trajectory, at noise
levels s and s' < s, predicts the clean latents at level 0. With distances d and d' of the two trajectories, which begin
with the same noise, the distance of their predictions is at least (s d' - s' d) / (s - s'), by the triangle inequality,
and equal if the trajectories part along one direction. The step is the first from which on this is at least `PARTED` of
the final distance. It is never too early, and exact where a velocity turns towards another picture at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

CELLS = 16
"""Cells along the shorter side of a picture."""

LEAST_SPREAD = 0.1
"""1 - r of the reference's pictures of several seeds; below it they show the same composition."""

PARTED = 0.5
"""The share of the final distance that counts as having left."""

OF_THE_SEEDS = ("one seed", "seeds alike", "constant reference")
"""Why a prompt has no threshold, for whatever variant."""

Values = npt.NDArray[np.float64]


def low_resolution(image: npt.NDArray[np.uint8]) -> Values:
    """Mean over cells, less the mean colour: (rows, columns, channels) of a picture (height, width, channels).

    A picture under 2 CELLS pixels is not averaged.
    """
    side = max(1, min(image.shape[:2]) // CELLS)
    rows, columns = (extent // side for extent in image.shape[:2])
    cut = image[: rows * side, : columns * side].reshape(rows, side, columns, side, -1)
    cells: Values = cut.mean(axis=(1, 3), dtype=np.float64)
    return cells - cells.mean(axis=(0, 1))


def likeness(one: Values, other: Values) -> float:
    """Correlation of two pictures in low resolution; NaN if one of them is constant."""
    norms = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(np.vdot(one, other)) / norms if norms else math.nan


def threshold(pictures: Sequence[Values]) -> float | str:
    """The least likeness within a basin, from the reference's pictures of one prompt and several seeds; or why not."""
    if len(pictures) < 2:
        return OF_THE_SEEDS[0]
    typical = float(np.median([likeness(one, other) for one, other in combinations(pictures, 2)]))
    if math.isnan(typical):
        return OF_THE_SEEDS[2]
    return (1 + typical) / 2 if 1 - typical >= LEAST_SPREAD else OF_THE_SEEDS[1]


def predicted_distances(distances: Sequence[float], levels: Sequence[float]) -> Values:
    """The least distance of the predicted clean latents after each step, in the unit of the distances.

    distances: of two trajectories after each step. levels: the noise levels at which the steps begin, falling; the last
    step ends at 0.
    """
    after = np.asarray(distances, float)
    before = np.concatenate([[0.0], after[:-1]])
    high = np.asarray(levels, float)
    low = np.concatenate([high[1:], [0.0]])
    predicted: Values = (high * after - low * before) / (high - low)
    return predicted


def parting_step(distances: Sequence[float], levels: Sequence[float]) -> int:
    """The number of the step, from 1, from which on the predicted distance is at least `PARTED` of the final one."""
    near = np.flatnonzero(predicted_distances(distances, levels) < PARTED * distances[-1])
    return int(near[-1]) + 2 if len(near) else 1
