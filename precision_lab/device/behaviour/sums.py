"""Sums and means: the order of summation, where counting stops, how the error grows, and the divisor of a mean."""

from __future__ import annotations

import numpy as np

from precision_lab.device.behaviour.bridge import Op
from precision_lab.device.behaviour.finding import Outcome
from precision_lab.device.behaviour.storage import Array, Storage


def order(reduce: Op, length: int) -> Outcome:
    """The largest number of additions that a term takes part in: length - 1 in a running sum, log2(length) in a tree.

    The terms are ones, with M at i and -M at j. M absorbs the ones that are added before -M; only the others count. The
    sum is therefore `length` minus the number of leaves below the node where i and j meet. Over all j, the number of
    distinct results is the depth of i (FPRev: Xie et al., "Revealing Floating-Point Accumulation Orders",
    arXiv:2411.00442). `reduce` maps (n, length) to n sums. M = 2^100, so only float32 and bfloat16 are supported.
    """
    huge = 2.0**100
    depth = 0
    for i in (0, length // 2, length - 1):
        others = np.array([j for j in range(length) if j != i])
        terms = np.ones((length - 1, length))
        terms[:, i] = huge
        terms[np.arange(length - 1), others] = -huge
        depth = max(depth, len(np.unique(reduce(terms))))
    if depth >= length - 1:
        answer = "sequential"
    elif depth <= np.log2(length) + 2:
        answer = "pairwise"
    else:
        answer = "blocked"
    return Outcome(answer, f"a term passes through up to {depth} additions of {length - 1}", depth, "additions")


def count(total: Op, storage: Storage, length: int) -> Outcome:
    """Whether the sum of `length` ones is exact, or where counting stops. The format must represent `length`."""
    result = float(total(np.ones(length, dtype=np.float32)).reshape(()))
    assert storage.holds(length)
    answer = "exact" if result == length else f"stops at {result:.0f}"
    return Outcome(answer, f"the sum of {length} ones came to {result:.0f}", result, "ones")


def error(total: Op, storage: Storage, length: int, rng: np.random.Generator) -> Outcome:
    """The relative error of the sum of `length` uniform random numbers, against their sum in float64.

    It is the root mean square over several sums, because a single error can be 0 by chance. Values are scaled so that
    float16 stays in range.
    """
    errors = []
    for _ in range(16 if length <= 2**16 else 6):
        x = storage.round(rng.random(length, dtype=np.float32) * 2.0**-7)
        errors.append(float(total(x).reshape(())) / x.sum() - 1)
    rms = float(np.sqrt(np.mean(np.square(errors))))
    return Outcome(f"{rms:.1e}", f"sums of {length} uniform numbers against float64", rms, "relative")


def mean_divisor(mean: Op, storage: Storage) -> Outcome:
    """Whether a mean of n ones divides by n, which gives 1, or multiplies by 1/n rounded to the format, which may not.

    The lengths are those below 250 for which the two differ; any accumulator counts that far exactly.
    """
    lengths = [n for n in range(3, 250) if _by_reciprocal(storage, n) != 1.0][:8]
    means = np.array([float(mean(np.ones((1, n))).reshape(())) for n in lengths])
    predicted = np.array([_by_reciprocal(storage, n) for n in lengths])
    worst = int(np.argmax(np.abs(means - 1)))
    evidence = f"the mean of {lengths[worst]} ones came to {means[worst]:.9g}"
    answer = "neither"
    for name, expected in (("exact", np.ones(len(lengths))), ("times rounded 1/n", predicted)):
        if np.array_equal(means, expected):
            answer = name
    return Outcome(answer, evidence, float(means[worst]))


def _by_reciprocal(storage: Storage, n: int) -> float:
    return float(storage.round(n * float(storage.round(1 / n))))


def normaliser(softmax: Op, storage: Storage, width: int, rng: np.random.Generator) -> Outcome:
    """Whether the probabilities of a softmax over `width` elements sum to 1 as closely as their rounding allows.

    Rounding changes each probability by up to half a unit at random, and so their float64 sum by 2^-p sqrt(sum p^2). A
    denominator summed in the format has an error of about 2^-p, or of any factor once its terms are absorbed.
    """
    logits = storage.round(rng.standard_normal((32, width)))
    p = softmax(logits)
    off = float(np.abs(p.sum(axis=1) - 1).max())
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    expected = 2.0**-storage.bits * np.sqrt((weights**2).sum(axis=1)).max() + 2.0**-24 * np.sqrt(width)
    wide = off <= 4 * expected
    flat = float(softmax(np.zeros((1, width))).sum())
    evidence = (
        f"sums of {width} probabilities are off by up to {off:.1e} (their rounding: {expected:.0e}); "
        f"of equal ones: {flat:.6g}"
    )
    return Outcome("as close as rounding allows" if wide else "off", evidence, off, "absolute")


def uniform_rows(rng: np.random.Generator, storage: Storage, shape: tuple[int, int]) -> Array:
    """Rows of random positive numbers around 1, so that nothing cancels."""
    return storage.round(0.5 + rng.random(shape))
