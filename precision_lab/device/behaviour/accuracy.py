"""The error of products and attention against float64, in units of the format's rounding, and rows that are wrong.

The bounds follow probabilistic rounding error analysis: a sum of k terms with unit roundoff u is off by up to
lambda sqrt(k) u times the sum of the terms' magnitudes (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019). At
lambda = 6 a correct operation exceeds the bound with a probability of 2 exp(-18), 3e-8, for each result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precision_lab.device.behaviour.bridge import Op
from precision_lab.device.behaviour.finding import Outcome
from precision_lab.device.behaviour.storage import Array, Storage, width_name

Mask = npt.NDArray[np.bool_]

LAMBDA = 6.0
SOURCE = "Higham and Mary 2019, lambda = 6"
RIGHT, WRONG = "all rows right", "wrong"
WITHIN, NARROWER = "within the bound", "narrower than float32"


@dataclass(frozen=True)
class Noise:
    """How far an operation may be off before its result is rounded.

    relative: the error over the sum of the magnitudes of its terms, as a function of the unit roundoff inside. inside:
    what the operation does in the format inside, as an answer says it.
    """

    relative: Callable[[float], float]
    inside: str


def product_noise(depth: int) -> Noise:
    """A sum of `depth` products whose factors and sums have unit roundoff u.

    The factors add 2u: they are exact in their own format, but not in a narrower one.
    """
    return Noise(lambda u: (2 + LAMBDA * math.sqrt(depth)) * u, "accumulates")


def attention_noise(q: Array, k: Array, scale: float) -> Noise:
    """softmax(scale q k^T) v with unit roundoff u inside.

    An error d of the scores changes each probability by a factor e^d, in the numerator and in the denominator. q:
    (..., queries, channels), k: (..., keys, channels).
    """
    channels, keys = k.shape[-1], k.shape[-2]
    spread = scale * float(np.sqrt((q**2).sum(-1).max() * (k**2).sum(-1).max()))
    return Noise(lambda u: 2 * (math.sqrt(channels) + 2) * spread * u + LAMBDA * math.sqrt(2 * keys) * u, "computes")


def rounding_error(
    op: Op,
    inputs: tuple[Array, ...],
    exact: Array,
    magnitude: Array,
    storage: Storage,
    noise: Noise,
) -> Outcome:
    """The largest error divided by the magnitude, in units of 2^-p, and the arithmetic that explains it.

    `magnitude` is the sum of the magnitudes of a result's terms; `exact` and `magnitude` have the shape of the result.
    There are two bounds, each with one rounding of the result: that of float32 arithmetic, and that of arithmetic in
    the format, or of 11 bits (TF32) for float32. An error beyond both is `wrong`.
    """
    result = op(*inputs)
    if result.shape != exact.shape:
        return Outcome(WRONG, f"the result has shape {result.shape}, expected {exact.shape}")
    if not np.isfinite(result).all():
        return Outcome("non-finite", f"{int((~np.isfinite(result)).sum())} of {result.size} results are not finite")
    unit = 2.0**-storage.bits
    worst = float(np.max(np.abs(result - exact) / np.maximum(magnitude, storage.smallest_normal)))
    value = worst / unit
    bounds = {width_name(bits): 1 + noise.relative(2.0**-bits) / unit for bits in (24, min(11, storage.bits))}
    wide, narrow = bounds
    answers = {wide: WITHIN, narrow: NARROWER if storage.bits > 11 else f"{noise.inside} in {storage.name}"}
    meets = next((name for name, bound in bounds.items() if value <= bound), None)
    evidence = f"off by up to {value:.3g} times 2^-{storage.bits} of the terms' magnitude, {result.size} results"
    answer = WRONG if meets is None else answers[meets]
    return Outcome(answer, evidence, value, f"2^-{storage.bits}", bounds[wide], SOURCE, bounds, meets)


def wrong_rows(op: Op, inputs: tuple[Array, ...], exact: Array) -> Outcome:
    """The number of rows that differ from integers which any format and any order of summation represent exactly.

    exact: (..., rows, columns).
    """
    result = op(*inputs)
    if result.shape != exact.shape:
        return Outcome(WRONG, f"the result has shape {result.shape}, expected {exact.shape}")
    bad = np.flatnonzero((result != exact).reshape(-1, exact.shape[-1]).any(axis=1))
    rows = exact.size // exact.shape[-1]
    if not bad.size:
        return Outcome(RIGHT, f"all {rows} rows are exact", 0.0, "rows", 0.0, "integer arithmetic")
    evidence = f"{bad.size} of {rows} rows are wrong, the first is row {bad[0]}"
    return Outcome(WRONG, evidence, float(bad.size), "rows", 0.0, "integer arithmetic")


def signs(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random -1, 0 and 1: sums of up to 256 products of such numbers are exact in every format."""
    return rng.integers(-1, 2, shape).astype(np.float64)


def exact_attention(q: Array, k: Array, v: Array, scale: float, allowed: Mask | None = None) -> tuple[Array, Array]:
    """softmax(scale q k^T) v in float64, and the sum of p |v|. allowed: booleans that broadcast to the scores."""
    scores = scale * (q @ np.swapaxes(k, -1, -2))
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return p @ v, p @ np.abs(v)
