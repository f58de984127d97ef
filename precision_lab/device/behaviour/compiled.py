"""Compares mx.compile with eager execution, in units in the last place."""

from __future__ import annotations

import numpy as np

from precision_lab.device.behaviour.bridge import Op
from precision_lab.device.behaviour.finding import Outcome
from precision_lab.device.behaviour.storage import Array, Storage


def difference(eager: Op, compiled: Op, inputs: tuple[Array, ...], storage: Storage) -> Outcome:
    """The largest difference between two forms of one function, in units in the last place of the format."""
    a, b = eager(*inputs), compiled(*inputs)
    changed = (a != b) & ~(np.isnan(a) & np.isnan(b))
    if not changed.any():
        return Outcome("same bits", f"all {a.size} results are the same", 0.0, "ulp")
    units = float(np.max(np.abs(a - b)[changed] / storage.ulp(np.where(np.isfinite(a), a, 0))[changed]))
    evidence = f"{int(changed.sum())} of {a.size} results differ, by up to {units:.3g} units in the last place"
    return Outcome(f"{units:.3g} ulp", evidence, units, "ulp")
