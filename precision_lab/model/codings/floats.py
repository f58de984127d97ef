"""The neighbours of weights in e2m1 or e4m3 with a scale, whatever shares the scale."""

from __future__ import annotations

from functools import lru_cache

import ml_dtypes
import mlx.core as mx
import numpy as np

from precision_lab.model.codings.base import Neighbours

_ELEMENTS = {4: ml_dtypes.float4_e2m1fn, 8: ml_dtypes.float8_e4m3fn}


def floating(raw: mx.array, scale: mx.array, bits: int) -> Neighbours:
    """The neighbours of e2m1 (4 bits) or e4m3 (8 bits) numbers `raw` as integers, times a positive scale."""
    sign = 1 << (bits - 1)
    magnitude = raw & (sign - 1)
    values = _ladder(bits)
    size = values[magnitude]
    up = values[mx.minimum(magnitude + 1, sign - 1)] - size
    up = mx.where(magnitude == _top(bits), mx.inf, up * scale)
    down = mx.where(magnitude == 0, values[1], size - values[mx.maximum(magnitude - 1, 0)]) * scale
    negative = raw >= sign
    return signed(magnitude.astype(mx.int32), negative, up, down)


def signed(magnitude: mx.array, negative: mx.array, up: mx.array, down: mx.array) -> Neighbours:
    """Neighbours from those of the magnitude: up and down are the distances to the next larger and smaller one."""
    codes = mx.where(negative, -magnitude, magnitude)
    return Neighbours(codes, mx.where(negative & (magnitude > 0), up, down), mx.where(negative, down, up))


@lru_cache
def _values(bits: int) -> tuple[float, ...]:
    patterns = np.arange(1 << (bits - 1), dtype=np.uint8).view(_ELEMENTS[bits])
    return tuple(patterns.astype(np.float32).tolist())


def _ladder(bits: int) -> mx.array:
    """The magnitudes of a format in ascending order; that of e4m3 ends with NaN."""
    return mx.array(_values(bits), dtype=mx.float32)


def _top(bits: int) -> int:
    """The code of the largest magnitude."""
    return 126 if bits == 8 else 7
