"""AWQ W4A16: unsigned 4-bit codes, with a scale and a centre for each group of channels.

A weight is (code - 8) * scale + zero, as in comfy-kitchen 0.2 (`gemv_awq_w4a16`) and in ComfyUI's files. Published
weights are scaled with activations before they are rounded; `encode` has none, and takes the range of each group.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from precision_lab.errors import InputError
from precision_lab.model.codings.base import Arrays, Coding, Neighbours, evenly_spaced, not_a_multiple
from precision_lab.model.codings.int4 import GROUP, SCALES, scaled

_LARGEST, _CENTRE = 15, 8


@dataclass(frozen=True)
class Awq(Coding):
    """`weight` (outputs, channels / 2), uint8, the even channel low; `scale` and `zero` (outputs, groups).

    group: the channels that share a scale and a centre. scales: the dtype of both.
    """

    group: int = GROUP
    scales: str = "float32"

    name = "awq"

    def __post_init__(self) -> None:
        if type(self.group) is not int or self.group < 2 or self.group % 2:
            raise InputError(f"awq.group is {self.group!r}, expected an even number of channels")
        if self.scales not in SCALES:
            raise InputError(f"awq.scales is {self.scales!r}, expected one of {', '.join(SCALES)}")

    def unfit(self, shape: tuple[int, ...]) -> str | None:
        return not_a_multiple(shape[1], self.group)

    def encode(self, weight: mx.array) -> dict[str, mx.array]:
        groups = weight.reshape(weight.shape[0], -1, self.group)
        low, high = groups.min(axis=-1), groups.max(axis=-1)
        wanted = (high - low) / _LARGEST
        scale = mx.where(wanted == 0, 1, wanted).astype(SCALES[self.scales])
        step = scale.astype(mx.float32)
        zero = (low + _CENTRE * step).astype(SCALES[self.scales])
        steps = mx.round((groups - zero.astype(mx.float32)[..., None]) / step[..., None]) + _CENTRE
        codes = mx.clip(steps, 0, _LARGEST).astype(mx.uint8).reshape(weight.shape)
        return {"weight": codes[:, 0::2] | (codes[:, 1::2] << 4), "scale": scale, "zero": zero}

    def decode(self, arrays: Arrays) -> mx.array:
        scale, zero = (arrays[name].astype(mx.float32) for name in ("scale", "zero"))
        centred = scaled(_unpacked(arrays["weight"]).astype(mx.float32) - _CENTRE, scale)
        return (centred.reshape(*zero.shape, -1) + zero[..., None]).reshape(centred.shape)

    def neighbours(self, arrays: Arrays) -> Neighbours:
        codes, scale = _unpacked(arrays["weight"]).astype(mx.int32), arrays["scale"].astype(mx.float32)
        return evenly_spaced(codes, mx.repeat(scale, codes.shape[1] // scale.shape[1], axis=1), 0, _LARGEST)


def _unpacked(pairs: mx.array) -> mx.array:
    """The codes (outputs, channels), uint8, of bytes (outputs, channels / 2)."""
    return mx.stack([pairs & 15, pairs >> 4], axis=-1).reshape(pairs.shape[0], -1)
