"""Activation functions that are taken for each other, and which of them an array was computed by.

In 16 bits, GELU with erf and GELU with tanh differ by less than rounding does in most values. Over an array, the errors
add up along the difference of the two functions: a projection on it tells them apart, whatever rounding does besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import erf, expit

from precision_lab.numerics.formats import ulp
from precision_lab.numerics.rounding_share import unit

Values = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

FUNCTIONS: Mapping[str, Callable[[Values], Values]] = {
    "GELU with tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "GELU with erf": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "GELU with a sigmoid": lambda x: x * expit(1.702 * x),
    "SiLU": lambda x: x * expit(x),
    "ReLU": lambda x: np.maximum(x, 0),
}

_LIMITS = {False: (0.5, 5.0), True: (0.25, 2.0)}
"""The least share of the difference of two functions that counts, and its least number of standard errors, by whether
the array deviates by more than rounding its result once explains. In bfloat16, GELU with tanh has shares of -0.1 to
0.5 of the way to GELU with erf if its result is rounded, and of -3 to -1 if each step is. GELU with erf has shares of 1
to 1.5 and of 0.4 to 1.3.
"""

_LEAST_NOISE = 1e-12
"""Of equal arrays, as a share of the variance of rounding."""

_STEPS = 2.0
"""Roundings, at the scale of the input, that the steps of an activation may add up to."""

_SAME = 1e-5
"""Relative L2 difference up to which two functions are one."""


def taken_for(x: Array, y: Array, exact: Array, fmt: str, beyond: bool) -> str:
    """The function of FUNCTIONS that `y` fits better than `exact`, the result that is right for the input `x`.

    y: in the format `fmt`. beyond: whether it deviates by more than one rounding explains. Empty where none fits
    better, or the difference could be chance.
    """
    kept = np.isfinite(exact) & np.isfinite(y) & np.isfinite(x)
    inputs, given, right = (a[kept].astype(np.float64).ravel() for a in (x, y, exact))
    error = given - right
    noise = ulp(right, fmt) ** 2 / 12 + (unit(fmt) * np.abs(inputs)) ** 2 / 48
    weight = 1 / np.maximum(noise, np.finfo(np.float64).tiny)
    (least, best), found = _LIMITS[beyond], ""
    for name, function in FUNCTIONS.items():
        other = function(inputs) - right
        if np.linalg.norm(other) <= _SAME * np.linalg.norm(right):
            continue
        size = float(weight @ other**2)
        share = float(weight @ (error * other)) / size
        left = float(weight @ (error - share * other) ** 2) / max(error.size - 1, 1)
        sure = share * math.sqrt(size / max(left, _LEAST_NOISE))
        if share > least and sure > best:
            best, found = sure, name
    return found


def rounded_in_steps(x: Array, y: Array, exact: Array, fmt: str) -> bool:
    """Whether rounding each step of an activation explains the error: in 99 % of the values, two roundings of numbers
    as large as the input, beside that of the result.
    """
    kept = np.isfinite(exact) & np.isfinite(x)
    inputs, given, right = (a[kept].astype(np.float64).ravel() for a in (x, y, exact))
    allowed = ulp(right, fmt) + _STEPS * unit(fmt) * np.abs(inputs) / 2
    if not given.size:
        return True
    return bool(np.isfinite(given).all() and np.quantile(np.abs(given - right) / allowed, 0.99) <= 1)
