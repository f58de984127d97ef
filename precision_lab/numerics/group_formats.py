"""MLX's quantisation formats, applied to activations: groups of elements along a row share a scale.

These are the modes of `mx.quantize`, with the arithmetic of its kernels, applied to float32 values:

- mxfp8, mxfp4 (OCP Microscaling v1.0): 32 elements of e4m3 or e2m1 share a power-of-two scale, the smallest that is not
  below amax / (largest element), so that nothing saturates. The example in the specification takes the floor of both
  logarithms, and MLX before 0.32.4 took the nearest power; both can saturate;
- nvfp4: 16 elements of e2m1 share an e4m3 scale, amax / 6, at most 448. Magnitudes above 2688 saturate, and a group
  whose amax is at most 6 * 2^-10 becomes zero;
- affine: levels between the extremes of a group, placed so that zero and the extreme of larger magnitude are levels.

Elements are rounded to nearest, ties to even, as in MLX's GPU kernels and `mx.qqmm`; `mx.quantize` on the CPU rounds
ties of e2m1 towards zero instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from precision_lab.errors import InputError, nearest

Array = npt.NDArray[Any]

E4M3, E2M1 = (3, -6, 448.0), (1, 0, 6.0)
"""Element formats: stored bits of the significand, exponent of the smallest normal, largest value."""
_AFFINE = re.compile(r"affine([234568])(?:_g(32|64|128))?")
DEFAULT_GROUP_FORMATS = ("mxfp8", "mxfp4", "nvfp4", "affine8", "affine4")


@dataclass(frozen=True)
class GroupFormat:
    """A mode of `mx.quantize`; groups of `group_size` run along the last axis."""

    name: str
    mode: str
    bits: int
    group_size: int


@lru_cache
def group_format(name: str) -> GroupFormat:
    """The group format called `name`: mxfp8, mxfp4, nvfp4, affineBITS (groups of 64) or affineBITS_gSIZE.

    Raises InputError for any other name.
    """
    if name in ("mxfp8", "mxfp4"):
        return GroupFormat(name, name, int(name[-1]), 32)
    if name == "nvfp4":
        return GroupFormat(name, name, 4, 16)
    if match := _AFFINE.fullmatch(name):
        return GroupFormat(name, "affine", int(match[1]), int(match[2] or 64))
    raise InputError(f"Unknown group format {name!r}. {nearest(name, DEFAULT_GROUP_FORMATS)} Or, e.g., affine4_g32.")


def round_trip(groups: Array, fmt: GroupFormat) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Quantises and decodes `groups`.

    groups: (n, fmt.group_size) float32, finite. Returns the decoded values, float32, and a mask of the elements that
    were clipped to the range of the element format, both of the same shape.
    """
    if fmt.mode == "affine":
        return _affine(groups, 2**fmt.bits - 1)
    mantissa_bits, lowest, largest = E4M3 if fmt.bits == 8 else E2M1
    magnitude = np.abs(groups)
    ratio = _reduce_groups(np.maximum, magnitude) / np.float32(largest)
    scale = _e4m3_scale(ratio) if fmt.mode == "nvfp4" else _power_of_two_scale(ratio)
    magnitude /= np.where(scale > 0, scale, np.float32(np.inf))
    magnitude = round_significand(magnitude, mantissa_bits, lowest)
    clipped = magnitude > largest
    np.minimum(magnitude, np.float32(largest), out=magnitude)
    magnitude *= scale
    return np.copysign(magnitude, groups, out=magnitude), clipped


def _power_of_two_scale(ratio: Array) -> Array:
    """`2^ceil(log2(ratio))`, limited to the range of e8m0; 1 for a group of zeros."""
    fraction, exponent = np.frexp(ratio)  # ratio = fraction * 2^exponent with the fraction in [0.5, 1)
    return np.ldexp(np.float32(1), np.clip(exponent - (fraction == 0.5), -127, 127))


def _e4m3_scale(ratio: Array) -> Array:
    return np.minimum(ratio, np.float32(448)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def round_significand(magnitude: Array, mantissa_bits: int, lowest: int) -> Array:
    """Rounds non-negative float32 to `mantissa_bits` stored bits, fixed-point below 2^lowest; no upper limit.

    Adding and subtracting 2^(23 - mantissa_bits) times the value's power of two leaves just those bits, ties to even.
    """
    power = np.maximum(magnitude, np.float32(2.0**lowest)).view(np.uint32)
    power &= np.uint32(0x7F800000)
    power += np.uint32((23 - mantissa_bits) << 23)
    anchor = power.view(np.float32)
    magnitude = magnitude + anchor
    magnitude -= anchor
    return magnitude


def _affine(groups: Array, levels: int) -> tuple[Array, npt.NDArray[np.bool_]]:
    low, high = _reduce_groups(np.minimum, groups), _reduce_groups(np.maximum, groups)
    below = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / np.float32(levels), np.float32(1e-7))
    scale = np.where(below, scale, -scale)
    edge = np.where(below, low, high)
    steps = np.rint(edge / scale)
    at_zero = steps == 0
    scale = np.where(at_zero, scale, edge / np.where(at_zero, np.float32(1), steps))
    bias = np.where(at_zero, np.float32(0), edge)
    level = np.rint((groups - bias) / scale)
    clipped = (level < 0) | (level > levels)
    np.clip(level, 0, levels, out=level)
    level *= scale
    level += bias
    return level, clipped


def _reduce_groups(function: np.ufunc, groups: Array) -> Array:
    """Reduces each group by `function` to (n, 1); for short groups, `reduceat` is faster than reducing an axis."""
    starts = np.arange(0, groups.size, groups.shape[1])
    return function.reduceat(groups.reshape(-1), starts)[:, None]
