"""The limits of the range: the result of overflow, its threshold, overflow inside a sum, and loss of subnormals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from precision_lab.device.behaviour.bridge import Op
from precision_lab.device.behaviour.finding import Outcome
from precision_lab.device.behaviour.storage import FLOAT32, Storage


def overflow(op: Op, large: float) -> Outcome:
    """The result for `large` and `-large` of an operation whose exact result exceeds the format."""
    values = op(np.array([large, -large]))
    if np.array_equal(values, [np.inf, -np.inf]):
        answer = "inf"
    elif np.isnan(values).all():
        answer = "NaN"
    else:
        answer = "saturates" if np.isfinite(values).all() and values[0] == -values[1] > 0 else "neither"
    return Outcome(answer, f"beyond the range, from {large:.6g}: {values[0]:.6g}", float(values[0]))


def cast_overflow(cast: Op, storage: Storage) -> Outcome:
    """The result of casting float32 at the overflow threshold, and whether the value just below it becomes `max`."""
    below = FLOAT32.round(np.nextafter(np.float32(storage.overflow), np.float32(0)))
    outcome = overflow(cast, storage.overflow)
    largest = float(cast(below.reshape(1))[0])
    early = "" if largest == storage.max else ", early"
    return replace(outcome, answer=outcome.answer + early, evidence=f"{outcome.evidence}; {below:.7g}: {largest:.6g}")


def range_inside(reduce: Op, storage: Storage, length: int) -> Outcome:
    """Whether m + m - m, with m near the maximum, overflows in an intermediate sum, as it does in the format itself.

    `reduce` maps (n, length) to sums of rows, or means. The other terms are zero. The -m takes each of three positions,
    so that any order of summation adds the two m first in some row.
    """
    m = float(storage.round(0.75 * storage.max))
    terms = np.zeros((3, length))
    for row, negative in enumerate((0, length // 2, length - 1)):
        terms[row, [0, length // 2, length - 1]] = m
        terms[row, negative] = -m
    sums = reduce(terms)
    lost = int((~np.isfinite(sums)).sum())
    answer = "wider than the format" if not lost else "overflows on the way"
    return Outcome(answer, f"m + m - m = m for m = {m:.4g}: {lost} of {sums.size} sums are not finite")


def square_inside(norm: Op, storage: Storage) -> Outcome:
    """Whether a norm is correct for values whose squares overflow the format (float16) but not float32."""
    x = np.tile([2.0, -2.0], (4, 64)) * 2.0 ** (np.log2(storage.max) // 2)
    out = norm(storage.round(x))
    finite = bool(np.isfinite(out).all() and np.abs(np.abs(out) - 1).max() < 0.01)
    answer = "wider than the format" if finite else "overflows on the way"
    return Outcome(answer, f"the norm of +-{x.max():.4g} gave {out.flat[0]:.4g}, expected +-1")


def subnormals(op: Op, inputs: tuple[np.ndarray, ...], exact: np.ndarray) -> Outcome:
    """Whether results that are subnormal, or computed from subnormal inputs, are exact (kept) or zero (flushed)."""
    out = op(*inputs)
    kept, zero = int((out == exact).sum()), int((out == 0).sum())
    if kept == exact.size:
        answer = "kept"
    elif zero == exact.size:
        answer = "flushed to zero"
    else:
        answer = "some lost"
    return Outcome(answer, f"{kept} of {exact.size} exact, {zero} zero", kept / exact.size, "share kept")
