"""Signed 4-bit codes, -7 to 7: one scale for each group of channels, or for each row.

The codes are round(value / scale), ties to even, with the scale largest magnitude / 7, the magnitude at least 1e-10; -8
is not used. Groups of 64 are those of SVDQuant (nunchaku; comfy-kitchen 0.2, `quantize_svdquant_w4a4`), rows those of
ConvRot W4A4 (`quantize_signed_int4_rowwise`). Two codes share a byte, the even channel in its low half.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from precision_lab.errors import InputError
from precision_lab.model.codings.base import Arrays, Coding, Inputs, Neighbours, evenly_spaced, not_a_multiple

LARGEST = 7
LARGEST_UNSIGNED = 15
SMALLEST_MAGNITUDE = 1e-10
GROUP = 64

SCALES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


@dataclass(frozen=True)
class Int4(Coding):
    """`weight` (outputs, channels / 2), int8, and `scale` (outputs, groups), in the dtype `scales`.

    group: the channels that share a scale; null for the whole row.
    """

    group: int | None = GROUP
    scales: str = "float32"

    name = "int4"

    def __post_init__(self) -> None:
        _check_group("int4.group", self.group)
        if self.scales not in SCALES:
            raise InputError(f"int4.scales is {self.scales!r}, expected one of {', '.join(SCALES)}")

    def unfit(self, shape: tuple[int, ...]) -> str | None:
        return not_a_multiple(shape[1], self.group or 2)

    def encode(self, weight: mx.array) -> dict[str, mx.array]:
        scale = group_scale(weight, self.group).astype(SCALES[self.scales])
        return {"weight": packed(codes(weight, scale.astype(mx.float32))), "scale": scale}

    def decode(self, arrays: Arrays) -> mx.array:
        return scaled(unpacked(arrays["weight"]).astype(mx.float32), arrays["scale"].astype(mx.float32))

    def neighbours(self, arrays: Arrays) -> Neighbours:
        codes_, scale = unpacked(arrays["weight"]).astype(mx.int32), arrays["scale"].astype(mx.float32)
        return evenly_spaced(codes_, mx.repeat(scale, codes_.shape[1] // scale.shape[1], axis=1), -LARGEST, LARGEST)


@dataclass(frozen=True)
class Int4Inputs(Inputs):
    """group: the channels of a token that share a scale; null for all of them.

    unsigned: whether the codes are 0 to 15, one for what is negative.
    """

    group: int | None = GROUP
    unsigned: bool = False

    name = "int4"

    def __post_init__(self) -> None:
        _check_group("int4_inputs.group", self.group)

    def unfit(self, channels: int) -> str | None:
        return not_a_multiple(channels, self.group or 1)

    def rounded(self, x: mx.array) -> mx.array:
        least, largest = (0, LARGEST_UNSIGNED) if self.unsigned else (-LARGEST, LARGEST)
        scale = group_scale(x, self.group, largest)
        return scaled(codes(x, scale, least, largest), scale)


def group_scale(x: mx.array, group: int | None, largest: int = LARGEST) -> mx.array:
    """The scale of each group of x (..., channels), (..., groups), whose magnitude has the code `largest`.

    It is not finite where x is not.
    """
    magnitude = mx.abs(x.reshape(*x.shape[:-1], -1, group or x.shape[-1])).max(axis=-1)
    return mx.maximum(magnitude, SMALLEST_MAGNITUDE) / largest


def codes(x: mx.array, scale: mx.array, least: int = -LARGEST, largest: int = LARGEST) -> mx.array:
    """The codes of x (..., channels), as floating-point numbers; scale (..., groups)."""
    grouped = x.reshape(*scale.shape, -1) / scale[..., None]
    return mx.clip(mx.round(grouped), least, largest).reshape(x.shape)


def scaled(values: mx.array, scale: mx.array) -> mx.array:
    """Values (..., channels) times the scale (..., groups) of their group."""
    return (values.reshape(*scale.shape, -1) * scale[..., None]).reshape(values.shape)


def packed(values: mx.array) -> mx.array:
    """Codes (..., channels), whole numbers from -8 to 7, as int8 (..., channels / 2)."""
    halves = values.astype(mx.int8).view(mx.uint8) & 0xF
    return (halves[..., 0::2] | (halves[..., 1::2] << 4)).view(mx.int8)


def unpacked(pairs: mx.array) -> mx.array:
    """The codes (..., channels), int8, of what `packed` returns."""
    low, high = pairs << 4, pairs
    return mx.stack([low >> 4, high >> 4], axis=-1).reshape(*pairs.shape[:-1], -1)


def _check_group(setting: str, group: object) -> None:
    if group is not None and (type(group) is not int or group < 2 or group % 2):
        raise InputError(f"{setting} is {group!r}, expected an even number of channels, or null for a whole row")
