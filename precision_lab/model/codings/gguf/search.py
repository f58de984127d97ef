"""ggml's searches for the scale, and offset, of a group of weights, for many groups at once.

Arrays are (weights of a group, groups), so that a sum over a group adds its weights in order, like the loops of
`ggml-quants.c`. Products are written in the order in which C evaluates them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from precision_lab.model.codings.gguf.blocks import Bytes, Floats, nearest

LEAST = np.float32(1e-15)
"""`GROUP_MAX_EPS`: a group without a larger magnitude is zero."""


class Affine(NamedTuple):
    """Weights are scale * codes - offset, with scale and offset (groups,), codes (n, groups)."""

    scale: Floats
    offset: Floats
    codes: Bytes


class Scaled(NamedTuple):
    """Weights are scale * codes, signed."""

    scale: Floats
    codes: Floats


def summed(x: Floats) -> Floats:
    """The sums (groups,) of x (n, groups), added one after another. `np.sum` does not promise an order."""
    total = x[0].copy()
    for row in x[1:]:
        total += row
    return total


def clipped(x: Floats, low: int, high: int) -> Floats:
    """The nearest integers within [low, high]."""
    return np.clip(nearest(x), low, high).astype(np.float32)


def affine(x: Floats, weights: Floats, largest: int, first: float, steps: int, absolute: bool = False) -> Affine:
    """`make_qkx2_quants`: codes from 0 to `largest`, and an offset that is not negative.

    Tries steps + 1 scales that map the range above the offset to largest + first, and 0.1 more each time, each with the
    least squares fit of scale and offset to its codes. Keeps the fit of least weighted squared, or `absolute`, error;
    its offset is that of the next trial.
    """
    low, high = np.minimum(x.min(axis=0), np.float32(0)), x.max(axis=0)
    sum_w, sum_x = summed(weights), summed(weights * x)
    constant = low == high
    high = np.where(constant, low + 1, high)

    def error(codes: Floats, scale: Floats, offset: Floats) -> Floats:
        difference = scale * codes + offset - x
        return summed(weights * (np.abs(difference) if absolute else difference * difference))

    factor = np.float32(largest) / (high - low)
    scale, least = np.reciprocal(factor), low
    best_codes = clipped(factor * (x - low), 0, largest)
    best = error(best_codes, scale, least)
    for step in range(steps + 1):
        factor = (np.float32(first) + np.float32(0.1) * np.float32(step) + np.float32(largest)) / (high - least)
        codes = clipped(factor * (x - least), 0, largest)
        weighted = weights * codes
        sum_l, sum_l2, sum_xl = summed(weighted), summed(weighted * codes), summed(weighted * x)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = np.divide(sum_w * sum_xl - sum_x * sum_l, determinant)
        new_low = np.divide(sum_l2 * sum_x - sum_l * sum_xl, determinant)
        positive = new_low > 0
        new_scale = np.where(positive, sum_xl / sum_l2, new_scale)
        new_low = np.where(positive, np.float32(0), new_low)
        new = error(codes, new_scale, new_low)
        better = (determinant > 0) & (new < best)
        best, scale, least = (np.where(better, a, b) for a, b in ((new, best), (new_scale, scale), (new_low, least)))
        np.copyto(best_codes, codes, where=better)
    best_codes[:, constant] = 0
    scale = np.where(constant, np.float32(0), scale)
    return Affine(scale, np.where(constant, -low, -least), best_codes.astype(np.uint8))


def symmetric(x: Floats, middle: int) -> Scaled:
    """`make_qx_quants` with squared weights: codes from -middle to middle - 1.

    Tries scales that map the weight of largest magnitude to -(middle + s / 10), s from -9 to 9, each with the least
    squares fit to its codes. The codes of a group of zeros are -middle.
    """
    peak, zero = _peak(x)
    squares = x * x
    moments = squares * x

    def fit(factor: Floats) -> tuple[Floats, Floats, Floats]:
        codes = clipped(factor * x, -middle, middle - 1)
        return codes, summed(moments * codes), summed(squares * codes * codes)

    best_codes, sum_xl, sum_l2 = fit(np.float32(-middle) / peak)
    scale = np.where(sum_l2 != 0, sum_xl / sum_l2, np.float32(0))
    best = scale * sum_xl
    for step in (s for s in range(-9, 10) if s):
        factor = -(np.float32(middle) + np.float32(0.1) * np.float32(step)) / peak
        codes, sum_xl, sum_l2 = fit(factor)
        better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
        scale = np.where(better, sum_xl / sum_l2, scale)
        best = np.where(better, scale * sum_xl, best)
        np.copyto(best_codes, codes, where=better)
    best_codes[:, zero] = -middle
    return Scaled(np.where(zero, np.float32(0), scale), best_codes)


def refined(x: Floats, middle: int) -> Scaled:
    """`make_q3_quants` with squared weights: codes from -middle to middle - 1, changed one by one.

    Begins with the scale that maps the weight of largest magnitude to -middle, and changes a code where the fit of all
    others asks for it and the error falls, in at most 5 passes. The codes of a group of zeros are -middle.
    """
    peak, zero = _peak(x)
    squares = x * x
    moments = squares * x
    codes = clipped(np.float32(-middle) / peak * x, -middle, middle - 1)
    sum_xl, sum_l2 = summed(moments * codes), summed(squares * codes * codes)
    for _ in range(5):
        for own, square, moment, code in zip(x, squares, moments, codes, strict=True):
            others_xl, others_l2 = sum_xl - moment * code, sum_l2 - square * code * code
            new = clipped(own * others_l2 / others_xl, -middle, middle - 1)
            new_xl, new_l2 = others_xl + moment * new, others_l2 + square * new * new
            change = (others_xl > 0) & (new != code) & (new_l2 > 0)
            change &= new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2
            np.copyto(code, new, where=change)
            sum_xl, sum_l2 = np.where(change, new_xl, sum_xl), np.where(change, new_l2, sum_l2)
    codes[:, zero] = -middle
    return Scaled(np.where(zero | ~(sum_l2 > 0), np.float32(0), sum_xl / sum_l2), codes)


def _peak(x: Floats) -> tuple[Floats, np.ndarray]:
    """The first weight of largest magnitude of each group, 1 for a group of zeros, and which groups are."""
    magnitudes = np.abs(x)
    peak = np.take_along_axis(x, magnitudes.argmax(axis=0)[None], axis=0)[0]
    zero = np.abs(peak) < LEAST
    return np.where(zero, np.float32(1), peak), zero
