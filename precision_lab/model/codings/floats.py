"""The neighbours of weights in e2m1 or e4m3 with a scale, whatever shares the scale; the words and scales of MLX."""

from __future__ import annotations

from functools import lru_cache

import ml_dtypes
import mlx.core as mx
import numpy as np

from precision_lab.model.codings.base import Neighbours
from precision_lab.numerics.packing import Quantization

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


def microscaled(
    words: mx.array, scales: mx.array, packing: Quantization, tensor_scale: mx.array | None = None
) -> Neighbours:
    """The neighbours of weights that MLX packs as mxfp4, mxfp8 or nvfp4: words and scales as `mx.quantize` has them."""
    size = mx.from_fp8(scales, mx.float32) if packing.mode == "nvfp4" else power_of_two(scales)
    found = floating(unpacked(words, packing.bits), mx.repeat(size, packing.group_size, axis=-1), packing.bits)
    if tensor_scale is None:
        return found
    return found._replace(below=found.below * tensor_scale, above=found.above * tensor_scale)


def unpacked(words: mx.array, bits: int) -> mx.array:
    """The codes (outputs, channels), int32, of MLX's packed words (outputs, channels * bits / 32), uint32.

    The codes of a row are a stream of bits, the lowest of each code first (little-endian).
    """
    row = mx.contiguous(words).view(mx.uint8).reshape(words.shape[0], -1, bits).astype(mx.uint16)
    after = mx.concatenate([row[..., 1:], mx.zeros_like(row[..., :1])], axis=-1)
    pairs = row | (after << 8)  # a code of at most 8 bits lies in two bytes
    codes = [(pairs[..., k * bits // 8] >> (k * bits % 8)) & ((1 << bits) - 1) for k in range(8)]
    return mx.stack(codes, axis=-1).reshape(words.shape[0], -1).astype(mx.int32)


def power_of_two(codes: mx.array) -> mx.array:
    """The scales, fp32, of e8m0 codes: 2^(code - 127)."""
    whole = (codes.astype(mx.uint32) << 23).view(mx.float32)
    return mx.where(codes == 0, mx.array(2.0**-127), whole)


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
