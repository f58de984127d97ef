"""NF4, the 4-bit format of QLoRA (https://arxiv.org/abs/2305.14314), as bitsandbytes stores it.

A weight is the largest magnitude of its block times one of 16 numbers, quantiles of a normal distribution. Double
quantisation stores these magnitudes in 8 bits too: their mean is subtracted, and blocks of 256 take the numbers of the
dynamic map of bitsandbytes (https://arxiv.org/abs/1511.04561).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from precision_lab.errors import InputError
from precision_lab.model.codings.base import Arrays, Coding, Neighbours

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Weights in a block, as bitsandbytes 0.50 takes them."""
NESTED = 256
"""Blocks whose magnitudes share one scale under double quantisation."""
_CHUNK = 1 << 20
_LEAST = np.float32(1e-38)
NUMBERS: Floats = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    dtype=np.float32,
)
"""The 16 numbers, in the order of their codes (`bitsandbytes.functional.get_4bit_type("nf4")`)."""


@dataclass(frozen=True)
class Nf4(Coding):
    """`weight` (outputs, channels / 2), uint8, two codes a byte, the first one high; `absmax` (outputs, blocks), fp32.

    block: consecutive channels that share a magnitude. nested: double quantisation; `absmax` is uint8 then, and there
    are `nested_absmax` (ceil(outputs * blocks / 256),) and `nested_offset` (), fp32. Two things can differ in the last
    places from what bitsandbytes writes: the offset, here the mean rounded once, and codes of magnitudes, here the
    nearest; its CPU kernel looks them up in steps of 2^-15.
    """

    block: int = 64
    nested: bool = False
    name = "nf4"

    def __post_init__(self) -> None:
        if self.block not in SIZES:
            raise InputError(f"nf4.block is {self.block}, expected one of {', '.join(map(str, SIZES))}")

    def unfit(self, shape: tuple[int, ...]) -> str | None:
        if shape[-1] % self.block:
            return f"{shape[-1]} channels, expected a multiple of {self.block}"
        return None

    def encode(self, weight: mx.array) -> dict[str, mx.array]:
        outputs, channels = weight.shape
        blocks = np.array(weight, dtype=np.float32).reshape(-1, self.block)
        step = _CHUNK // self.block
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite decodes so, whatever its codes
            parts = [_coded(blocks[i : i + step], NUMBERS) for i in range(0, len(blocks), step)]
            codes = np.concatenate([part[0] for part in parts]).reshape(outputs, channels)
            absmax = np.concatenate([part[1] for part in parts]).reshape(outputs, -1)
            arrays = {"weight": mx.array(codes[:, ::2] << 4 | codes[:, 1::2])}
            return arrays | (_nested(absmax) if self.nested else {"absmax": mx.array(absmax)})

    def decode(self, arrays: Arrays) -> mx.array:
        packed = arrays["weight"]
        numbers = _pairs()[packed].view(mx.float32).reshape(-1, self.block)
        return (numbers * self._absmax(arrays).reshape(-1, 1)).reshape(packed.shape[0], -1)

    def neighbours(self, arrays: Arrays) -> Neighbours:
        packed = arrays["weight"]
        codes = mx.stack([packed >> 4, packed & 15], axis=-1).reshape(-1, self.block).astype(mx.int32)
        scale = self._absmax(arrays).reshape(-1, 1)
        gaps = mx.array(np.concatenate([[np.inf], np.diff(NUMBERS), [np.inf]]).astype(np.float32))
        down, up = gaps[codes] * mx.abs(scale), gaps[codes + 1] * mx.abs(scale)
        falling = scale < 0  # magnitudes in 8 bits can decode to less than zero
        shape = packed.shape[0], -1
        below, above = mx.where(falling, up, down).reshape(shape), mx.where(falling, down, up).reshape(shape)
        rising = mx.broadcast_to(mx.where(falling, -1, 1), codes.shape).reshape(shape)
        return Neighbours(codes.reshape(shape), below, above, rising)

    def _absmax(self, arrays: Arrays) -> mx.array:
        """The magnitudes of all blocks, fp32."""
        absmax = arrays["absmax"]
        if not self.nested:
            return absmax.astype(mx.float32)
        scales = mx.repeat(arrays["nested_absmax"].astype(mx.float32), NESTED)[: absmax.size]
        scaled = mx.array(dynamic_map())[absmax.reshape(-1)] * scales
        return scaled + arrays["nested_offset"].astype(mx.float32)


def _pairs() -> mx.array:
    """The two numbers of each byte, (256,), side by side in 64 bits: one look-up for both takes half the time."""
    byte = np.arange(256)
    return mx.array(np.stack([NUMBERS[byte >> 4], NUMBERS[byte & 15]], axis=-1).view(np.uint64)[:, 0])


@cache
def dynamic_map() -> Floats:
    """The 256 numbers of `bitsandbytes.functional.create_dynamic_map`, ascending.

    A decade 10^e of 7 has the midpoints of 2^(e + 6) equal parts of [0.1, 1], with both signs; then there are 0 and 1.
    """
    numbers = [np.float32(0), np.float32(1)]
    low, high = np.float32(0.1), np.float32(1)
    for power in range(7):
        index = np.arange(2**power + 1)
        step = np.float64((high - low) / np.float32(2**power))  # torch.linspace: from both ends, rounded once
        ends = np.where(index < len(index) // 2, low + index * step, high - (2**power - index) * step)
        nodes = ends.astype(np.float32)
        decade = np.float32(10.0 ** (power - 6)) * ((nodes[:-1] + nodes[1:]) / 2)
        numbers += [*decade, *-decade]
    return np.sort(np.array(numbers, dtype=np.float32))


def _nested(absmax: Floats) -> dict[str, mx.array]:
    """The arrays that store magnitudes in 8 bits."""
    offset = np.float32(absmax.mean(dtype=np.float64))
    padded = np.zeros(-(-absmax.size // NESTED) * NESTED, dtype=np.float32)
    padded[: absmax.size] = absmax.reshape(-1) - offset
    codes, scales = _coded(padded.reshape(-1, NESTED), dynamic_map())
    return {
        "absmax": mx.array(codes.reshape(-1)[: absmax.size].reshape(absmax.shape)),
        "nested_absmax": mx.array(scales),
        "nested_offset": mx.array(float(offset)),
    }


def _coded(blocks: Floats, numbers: Floats) -> tuple[Bytes, Floats]:
    """The codes of blocks (n, size) by the nearest of `numbers` times the largest magnitude, and these (n,)."""
    absmax = np.abs(blocks).max(axis=-1)
    scaled = np.clip(blocks * (1 / np.maximum(absmax, _LEAST))[:, None], -1, 1)
    return np.searchsorted((numbers[:-1] + numbers[1:]) / 2, scaled).astype(np.uint8), absmax
