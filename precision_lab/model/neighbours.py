"""The codes of stored weights, the values next to them, and stochastic rounding to these.

Whatever a linear stores its weight in, every value that its format can hold at the same scale has a next smaller and a
next larger one. The distance between them is the step of the format at that weight: it is the same at all weights of a
group of integers, and follows the magnitude of the weight in floating point.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.coded import CodedLinear, linear_weight
from precision_lab.model.codings.base import Neighbours, evenly_spaced
from precision_lab.model.codings.floats import microscaled, signed, unpacked
from precision_lab.model.quantized import packing_of

_BITS = {mx.bfloat16: (mx.uint16, 0x7FFF), mx.float16: (mx.uint16, 0x7FFF), mx.float32: (mx.uint32, 0x7FFFFFFF)}


def neighbours(module: nn.Module) -> Neighbours | None:
    """The codes of a linear of `model.coded.LINEARS` and what lies next to them; None where its format states none.

    The code of a floating-point number counts the numbers of its format from zero, so that both zeros are 0.
    """
    if isinstance(module, CodedLinear):
        return module.coding.neighbours(module.arrays)
    if isinstance(module, nn.QuantizedLinear):
        return _of_packed(module)
    return _of_floats(module.weight)


def stochastic(module: nn.Module, weight: mx.array, uniform: mx.array) -> tuple[mx.array, mx.array] | None:
    """`weight` rounded up or down at random to the values of a linear that stores it rounded to nearest.

    A weight between two values becomes the larger one with the probability that makes the mean of what is stored equal
    to the weight; beyond the ends of a scale it becomes the end. `uniform`: numbers in [0, 1), (outputs, channels): the
    larger value is taken where they are below that probability. Scales are those that rounding to nearest has.

    Returns the decoded weight, fp32, and its codes, both (outputs, channels). None where the format states no codes.
    """
    found = neighbours(module)
    if found is None:
        return None
    decoded = linear_weight(module)
    error = weight.astype(mx.float32) - decoded
    coding = module.coding if isinstance(module, CodedLinear) else None
    if coding is not None:
        error = coding.to_basis(error)
    rises = (error > 0) & (uniform * found.above < error)
    falls = (error < 0) & ((1 - uniform) * found.below <= -error)
    move = mx.where(rises, found.above, mx.where(falls, -found.below, 0))
    codes = found.codes + mx.where(rises, found.rising, mx.where(falls, -found.rising, 0))
    return decoded + (move if coding is None else coding.from_basis(move)), codes


def step(found: Neighbours) -> mx.array:
    """The mean distance to the neighbouring values, (outputs, channels), fp32.

    At an end of a scale it is the distance to the only neighbour, and NaN where there is none.
    """
    below, above = found.below, found.above
    low, high = mx.isfinite(below), mx.isfinite(above)
    total = mx.where(low, below, 0) + mx.where(high, above, 0)
    count = low.astype(mx.float32) + high.astype(mx.float32)
    return mx.where(count > 0, total / mx.maximum(count, 1), mx.nan)


def _of_floats(weight: mx.array) -> Neighbours:
    kind, mask = _BITS[weight.dtype]
    bits = weight.view(kind)
    magnitude = (bits & mask).astype(kind)

    def value(pattern: mx.array) -> mx.array:
        return pattern.astype(kind).view(weight.dtype).astype(mx.float32)

    size = value(magnitude)
    up = value(magnitude + 1) - size
    down = mx.where(magnitude == 0, up, size - value(mx.maximum(magnitude, 1) - 1))
    return signed(magnitude.astype(mx.int32), bits > mask, up, down)


def _of_packed(layer: nn.QuantizedLinear) -> Neighbours:
    scales = layer.scales
    if layer.mode == "affine":
        scale = mx.repeat(scales.astype(mx.float32), layer.group_size, axis=-1)
        return evenly_spaced(unpacked(layer.weight, layer.bits), scale, 0, (1 << layer.bits) - 1)
    return microscaled(layer.weight, scales, packing_of(layer), layer.get("tensor_scale"))
