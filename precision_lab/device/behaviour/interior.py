"""The internal precision of an operation: its error beyond the single rounding of the result."""

from __future__ import annotations

import numpy as np

from precision_lab.device.behaviour.bridge import Op
from precision_lab.device.behaviour.finding import Outcome
from precision_lab.device.behaviour.storage import Array, Storage

_MOST = 24.0


def interior_bits(op: Op, inputs: tuple[Array, ...], exact: Array, scale: Array, storage: Storage) -> Outcome:
    """-log2 of the largest (|result - exact| - half a unit in the last place) / scale; at most 24.

    An operation that is exact internally and rounds once has an error of at most half a unit; one that computes in
    float32, little more. One that rounds an intermediate to the format has another half unit of error somewhere, which
    leaves about the width of the format. `scale` is the sum of the magnitudes of the result's terms (the magnitude of
    the result if nothing cancels); `exact` and `scale` have the shape of the result. With n results, an excess below
    2^-p / n cannot be detected: if there is none, the bits are p + log2(n), a lower bound.
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
