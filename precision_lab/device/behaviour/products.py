"""Matrix products: how many bits of the factors are used, how wide the accumulator is, and when it is rounded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np

from precision_lab.device.behaviour.bridge import Op
from precision_lab.device.behaviour.finding import Outcome
from precision_lab.device.behaviour.storage import Array, Storage, width_name

# Wider accumulators, such as float64, are not distinguished: float32 has 24 bits, and S6 requires no more.
_WIDEST = 27


def input_bits(matmul: Op, storage: Storage, rng: np.random.Generator, rows: int = 64, depth: int = 128) -> Outcome:
    """The widest significand that passes through a product exactly, on the left, on the right, and on both sides.

    `matmul` is (rows, depth) @ (depth, depth). One factor is (part of) the identity, so each output is one product that
    is exact in the format. A kernel that rounds its inputs (TF32: 11 bits) loses the last bits of the other factor. A
    kernel that splits a float32 into two or three narrower terms preserves single factors, but not products of two
    factors of half the format's width, because it drops the product of the last terms.
    """
    eye, short_eye = np.eye(depth), np.eye(rows, depth)

    def left(bits: int) -> bool:
        a = _significands(bits, (rows, depth), rng)
        return np.array_equal(matmul(a, eye), a)

    def right(bits: int) -> bool:
        b = _significands(bits, (depth, depth), rng)
        return np.array_equal(matmul(short_eye, b), b[:rows])

    half = storage.bits // 2
    a, b = _significands(half, (rows, 1), rng), _significands(half, (depth, depth), rng)
    exact = a * b[:rows]
    error = float(np.max(np.abs(matmul(short_eye * a, b) / exact - 1)))
    # two factors rounded to p bits have an error of up to 2^-p each
    products = storage.bits if error == 0 else max(round(1 - np.log2(error)), 0)
    widths = {side.__name__: _widest(side, storage.bits) for side in (left, right)}
    bits = min(*widths.values(), products)
    evidence = (
        f"significands of up to {widths['left']} (left) and {widths['right']} (right) of {storage.bits} bits come "
        f"through exactly; products of two of {half} bits are off by up to {error:.1e}"
    )
    return Outcome(width_name(bits), evidence, bits, "bits")


def _widest(exact: Callable[[int], bool], most: int) -> int:
    return next((bits for bits in range(most, 0, -1) if exact(bits)), 0)


def _significands(bits: int, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random values in [1, 2) whose significand has exactly `bits` bits, with the last one set."""
    below = 2 ** (bits - 1)
    odd = rng.integers(0, below, shape) | 1 if bits > 1 else np.zeros(shape)
    return 1.0 + odd / below


def accumulator_bits(reduce: Op, storage: Storage, length: int, rng: np.random.Generator, trials: int = 128) -> Outcome:
    """The width of the accumulator, in any order of summation: the smallest d for which 1, d and -1 always sum to d.

    `reduce` maps (trials, length) to sums of rows, (trials,) or (trials, n). Each row has 1, d and -1 at random
    positions and zeros elsewhere. In any order, some rows add 1 and d first; an accumulator of p bits represents
    1 + 2^-k only for k < p. All terms are scaled by a power of two that keeps d a normal number.
    """
    one = 2.0 ** (-np.log2(storage.smallest_normal) - 2) if storage.name == "float16" else 1.0
    places = np.argsort(rng.random((trials, length)), axis=1)[:, :3]
    rows = np.arange(trials)

    def survives(k: int) -> bool:
        terms = np.zeros((trials, length))
        for place, value in zip(places.T, (one, one * 2.0**-k, -one), strict=True):
            terms[rows, place] = value
        return bool((reduce(terms) == one * 2.0**-k).all())

    # an accumulator that loses 2^-k loses every smaller term too
    bits = bisect_left(range(1, _WIDEST), True, key=lambda k: not survives(k)) + 1
    lost = f"the first lost bit is 2^-{bits}" if bits < _WIDEST else f"none lost down to 2^-{_WIDEST - 1}"
    return Outcome(width_name(bits), f"1 + 2^-k - 1 in {trials} random places of {length}: {lost}", bits, "bits")


def bias_rounding(addmm: Op, storage: Storage) -> Outcome:
    """Whether a product is rounded to the format before the bias is added: addmm(bias, a, b) = a @ b + bias.

    The product is 1 + 2^-p, which the format (p bits) rounds to 1; the bias is -1. The result is 0 if the product is
    rounded before the addition and 2^-p if only the sum is rounded.
    """
    depth, tiny = 64, 2.0**-storage.bits
    a, b = np.zeros((64, depth)), np.zeros((depth, 64))
    a[:, 0], b[0] = 1.0, 1.0
    a[:, 1], b[1] = tiny, 1.0
    out = addmm(-np.ones((64, 64)), a, b)
    answer = {tiny: "after the bias", 0.0: "before the bias"}.get(float(out.flat[0]), "neither")
    return Outcome(
        answer if (out == out.flat[0]).all() else "neither",
        f"(1 + 2^-{storage.bits}) - 1 came to {out.flat[0]:.3g}",
        float(out.flat[0]),
    )
