"""Norms that are taken for each other, and which of them an array was computed by.

Another eps, or a layer norm without its mean, can move an array by less than rounding does. A program that computes the
norm in fp32 and rounds its result leaves a finer trace: the values are exactly those of the other norm, rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from precision_lab.numerics.formats import round_to, ulp

Array = npt.NDArray[Any]
Values = npt.NDArray[np.float64]

EPS = (0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""The values that are tried: those that published models and frameworks have."""

_MOST = 1 << 17
"""Values that are looked at, in rows at equal distances."""

_SAME = 1e-5
"""Relative L2 distance up to which a formula is that of the module."""

_SHARE = 1 / 16
"""The largest share of the squared error, in ulps, that the other norm may leave."""

_LEAST_VALUES = 8
"""Values that must fit better with the other norm than with the right one, beyond those that fit worse."""

_LEAST_SIZE = 1e-3
"""The size of a row, relative to the right one, below which it says nothing of an eps."""

_LEAST_SHIFT = 2.0**-21
"""The relative rms distance of two norms that counts: four ulps of fp32. A reciprocal square root may be two off."""


@dataclass(frozen=True)
class Norm:
    """(x - mean(x)) / sqrt(var(x) + eps), or x / sqrt(mean(x^2) + eps), over the last axis.

    centred: whether the mean is subtracted. unbiased: whether the variance is divided by one less than the channels.
    early: whether the result is rounded before it is multiplied with the scale, too.
    """

    eps: float
    centred: bool
    unbiased: bool = False
    early: bool = False

    def rounded(self, x: Values, scale: Values | None, fmt: str) -> Values:
        """The result for rows of `x`, rounded to the format `fmt`."""
        y = self.of(x)
        if scale is not None:
            y = (round_to(y, fmt) if self.early else y) * scale
        return round_to(y, fmt)

    def of(self, x: Values) -> Values:
        """The result for rows of `x`, without a scale; zero for rows of zeros."""
        y = x - x.mean(-1, keepdims=True) if self.centred else x
        square = np.mean(y * y, axis=-1, keepdims=True)
        if self.unbiased:
            square *= x.shape[-1] / (x.shape[-1] - 1)
        root = np.sqrt(square + self.eps)
        return np.divide(y, root, out=np.zeros_like(y), where=root > 0)


def taken_for(x: Array, y: Array, exact: Array, fmt: str, eps: float, weight: Array | None) -> str:
    """The norm whose rounded result `y` is, if it is another than that of `exact`, the fp32 result for the input `x`.

    y: in the format `fmt`. eps: of the right norm. weight: of the right norm, (channels,), or None. Empty where the
    right norm explains `y` as well, and where neither `exact` nor `y` is a norm that is known here.
    """
    channels = x.shape[-1]
    if weight is not None and weight.shape != (channels,):
        return ""  # a norm over other axes
    rows = max(1, _MOST // channels)
    step = -(-(x.size // channels) // rows)
    given, got, right = (a.reshape(-1, channels)[::step].astype(np.float64) for a in (x, y, exact))
    kept = np.isfinite(given).all(1) & np.isfinite(got).all(1) & np.isfinite(right).all(1) & (given != 0).any(1)
    given, got, right = given[kept], got[kept], right[kept]
    found = _formula(given, right, eps, weight)
    if not given.size or channels < 2 or found is None:
        return ""
    norm, scale = found
    own = min((_error(each, given, got, scale, fmt) for each in _ways(norm, scale)), key=_energy)
    if (own > 0).sum() < _LEAST_VALUES:
        return ""
    least, name = _SHARE * _energy(own), ""
    right = norm.of(given)
    for other, about in _others(norm, _fitted(norm, given, got if scale is None else got / np.where(scale, scale, 1))):
        if np.linalg.norm(other.of(given) - right) < _LEAST_SHIFT * np.linalg.norm(right):
            continue
        for each in _ways(other, scale):
            error = _error(each, given, got, scale, fmt)
            better = int((error < own).sum()) - int((error > own).sum())
            if _energy(error) < least and better >= _LEAST_VALUES:
                least, name = _energy(error), about
    return name


def _formula(x: Values, right: Values, eps: float, weight: Array | None) -> tuple[Norm, Values | None] | None:
    """The norm that gives `right`, with its scale; None if none does."""
    scales: list[Values | None] = [None]
    if weight is not None:
        scales = [weight.astype(np.float64), 1 + weight.astype(np.float64)]
    for centred in (True, False):
        for scale in scales:
            norm = Norm(eps, centred)
            y = norm.of(x) if scale is None else norm.of(x) * scale
            if np.linalg.norm(y - right) <= _SAME * np.linalg.norm(right):
                return norm, scale
    return None


def _fitted(norm: Norm, x: Values, y: Values) -> float:
    """The eps that fits the sizes of the rows of `y`, without scale, to two digits; at least 0."""
    right = norm.of(x)
    square = (np.var(x, axis=-1) if norm.centred else np.mean(x * x, axis=-1)) + norm.eps
    share = np.sum(y * right, axis=-1) / np.maximum(np.sum(right * right, axis=-1), 1e-300)
    known = (share > _LEAST_SIZE) & (square > 0)
    weight = 1 / square[known]
    change = float(np.sum((share[known] ** -2 - 1) * weight) / max(np.sum(weight * weight), 1e-300))
    return max(0.0, float(f"{norm.eps + change:.1e}"))


def _others(norm: Norm, fitted: float) -> Iterator[tuple[Norm, str]]:
    """Other norms with their names. Of equally good ones the first counts."""
    for eps in (*EPS, fitted):
        if eps != norm.eps:
            yield replace(norm, eps=eps), f"the norm with eps {eps:g}"
    mean = "without its mean subtracted" if norm.centred else "with its mean subtracted"
    yield replace(norm, centred=not norm.centred), f"the norm {mean}"
    if norm.centred:
        yield replace(norm, unbiased=True), "the norm with the unbiased variance"


def _ways(norm: Norm, scale: Values | None) -> list[Norm]:
    return [norm] if scale is None else [norm, replace(norm, early=True)]


def _error(norm: Norm, x: Values, y: Values, scale: Values | None, fmt: str) -> Values:
    """The distance of `y` from the rounded result of the norm, in ulps of its values, or of a quarter of their rms."""
    expected = norm.rounded(x, scale, fmt)
    size = np.sqrt(np.mean(expected * expected)) / 4  # of all rows: one without variance is zero but for rounding
    error: Values = np.abs(y - expected) / ulp(np.maximum(np.abs(expected), size), fmt)
    return error


def _energy(error: Values) -> float:
    return float(np.sum(error * error))
