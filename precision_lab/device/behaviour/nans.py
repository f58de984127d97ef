"""Tests whether NaN propagates to the result or is lost."""

from __future__ import annotations

import numpy as np

from precision_lab.device.behaviour.bridge import Op
from precision_lab.device.behaviour.finding import Outcome


def propagation(op: Op, length: int = 64) -> Outcome:
    """Whether a NaN in any position of a row reaches the result.

    `op` maps (length, length) to one or more values per row. Row i contains a NaN at index i among finite numbers.
    """
    x = np.tile(np.linspace(-1, 1, length), (length, 1))
    x[np.diag_indices(length)] = np.nan
    out = op(x).reshape(length, -1)
    shown = int(np.isnan(out).any(axis=1).sum())
    answer = {length: "propagates", 0: "swallowed"}.get(shown, "depends on the place")
    return Outcome(answer, f"{shown} of {length} rows with a NaN give NaN", shown / length, "share")


def masked_row(softmax: Op, length: int = 64) -> Outcome:
    """The softmax of a row of -inf, as a fully masked query has. In IEEE arithmetic it is 0/0, NaN."""
    out = softmax(np.full((1, length), -np.inf))
    if np.isnan(out).all():
        answer = "NaN"
    elif (out == 0).all():
        answer = "zeros"
    else:
        answer = "uniform" if np.isfinite(out).all() and np.ptp(out) == 0 else "mixed"
    return Outcome(answer, f"a row of -inf gave {out.flat[0]:.4g}", float(out.flat[0]))
