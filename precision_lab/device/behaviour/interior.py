"""How precise an operation is inside: its error beyond the one rounding of the result that any format costs."""

from __future__ import annotations

import numpy as np

from precision_lab.device.behaviour.bridge import Op
from precision_lab.device.behaviour.finding import Outcome
from precision_lab.device.behaviour.storage import Array, Storage

_MOST = 24.0


def interior_bits(op: Op, inputs: tuple[Array, ...], exact: Array, scale: Array, storage: Storage) -> Outcome:
    """-log2 of the greatest (|result - exact| - half a unit of the result) / scale, at most 24.

    An operation that is exact inside and rounds once is never off by more than half a unit, and one that computes in
    float32 by little more; one that rounds an intermediate to the format is off by another half unit somewhere, which
    leaves about the format's own width. `scale` is the sum of magnitudes of the terms the result is made of (its own
    magnitude where nothing cancels); exact and scale have the result's shape. With n results an excess below
    2^-p / n is not seen: where none is, the bits are p + log2(n), a lower bound.
    """
    result = op(*inputs)
    if not np.isfinite(result).all():
        bad = int((~np.isfinite(result)).sum())
        return Outcome("non-finite", f"{bad} of {result.size} results are not finite", None, "bits")
    error = np.abs(result - exact)
    excess = float(np.max((error - storage.ulp(exact) / 2) / scale))
    units = float(np.max(error / storage.ulp(exact)))
    least_seen = storage.bits + np.log2(result.size)
    bits = min(_MOST, least_seen) if excess <= 0 else min(_MOST, -np.log2(excess))
    bits = max(float(bits), 0.0)
    evidence = f"off by up to {units:.4g} units in the last place of {storage.name}, {result.size} results"
    return Outcome(f"{bits:.1f} bits", evidence, bits, "bits")
