"""What the block formats of ggml have in common: rows of bytes in blocks of a fixed number of weights.

Layouts and encoders follow `ggml-quants.c` and `ggml-common.h` of ggml (https://github.com/ggml-org/ggml). Encoders
compute in fp32 with NumPy and sum in the order of that file, so that codes are the same on every machine; an
importance matrix is not used. Decoded values are the same on every backend, with or without fused multiply-adds: all
products before the last operation are exact in fp32.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from precision_lab.model.codings.base import Arrays, Coding, Neighbours, evenly_spaced

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

CHUNK = 1 << 16
"""Weights that are encoded at once: their intermediate arrays stay in the cache."""
_MAGIC = np.float32(1.5 * 2**23)


class Groups(NamedTuple):
    """The weights of some blocks, scale * code + offset.

    codes (blocks, groups of a block, weights of a group), integers in fp32; scale and offset (blocks, groups, 1), fp32.
    """

    codes: mx.array
    scale: mx.array
    offset: mx.array | None = None


class BlockFormat(Coding):
    """`weight` (outputs, bytes of a row), uint8, as the file has it.

    number: the type's number in a GGUF file. values: weights in a block, consecutive channels. size: bytes in a block.
    halves: the bytes of a block at which its scale and its offset, if it has one, are stored as float16. limits: the
    least and the largest code.
    """

    number: ClassVar[int]
    values: ClassVar[int]
    size: ClassVar[int]
    halves: ClassVar[tuple[int, ...]]
    limits: ClassVar[tuple[int, int]]

    def unfit(self, shape: tuple[int, ...]) -> str | None:
        if shape[-1] % self.values:
            return f"{shape[-1]} channels, expected a multiple of {self.values}"
        return None

    def encode(self, weight: mx.array) -> dict[str, mx.array]:
        blocks = np.array(weight, dtype=np.float32).reshape(-1, self.values)
        step = CHUNK // self.values
        with np.errstate(all="ignore"):  # as in C: ggml decides nothing by a floating-point exception
            parts = [self.encoded(blocks[i : i + step]) for i in range(0, len(blocks), step)]
        return {"weight": mx.array(np.concatenate(parts).reshape(len(weight), -1))}

    def decode(self, arrays: Arrays) -> mx.array:
        codes, scale, offset = self.groups(arrays["weight"].reshape(-1, self.size))
        values = scale * codes if offset is None else scale * codes + offset
        return values.reshape(arrays["weight"].shape[0], -1)

    def neighbours(self, arrays: Arrays) -> Neighbours:
        codes, scale, _ = self.groups(arrays["weight"].reshape(-1, self.size))
        rows = arrays["weight"].shape[0]
        scales = mx.broadcast_to(scale, codes.shape).reshape(rows, -1)
        return evenly_spaced(codes.astype(mx.int32).reshape(rows, -1), scales, *self.limits)

    @abstractmethod
    def encoded(self, blocks: Floats) -> Bytes:
        """The bytes (blocks, size) of weights (blocks, values). A block with a value that is not finite decodes so."""

    @abstractmethod
    def groups(self, blocks: mx.array) -> Groups:
        """What the bytes (blocks, size) stand for."""


def half(blocks: mx.array, offset: int) -> mx.array:
    """The float16 at a byte offset of each block, (blocks, 1), in fp32."""
    return mx.contiguous(blocks[:, offset : offset + 2]).view(mx.float16).astype(mx.float32)


def half_bytes(x: Floats) -> Bytes:
    """The two bytes (blocks, 2) of each number of (blocks, 1) as a float16."""
    return x.astype("<f2").view(np.uint8)


def fields(packed: mx.array, width: int, count: int) -> mx.array:
    """Unpacks `count` numbers of `width` bits from each byte, the lowest first: (..., n) to (..., count, n), uint8."""
    shifts = mx.array([width * i for i in range(count)], dtype=mx.uint8).reshape(count, 1)
    return (packed[..., None, :] >> shifts) & mx.array((1 << width) - 1, dtype=mx.uint8)


def packed_fields(codes: npt.NDArray[np.integer[Any]], width: int) -> Bytes:
    """Packs (..., count, n) numbers of `width` bits to bytes (..., n), the first lowest: the inverse of `fields`."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[: codes.shape[-2], None]
    packed: Bytes = np.bitwise_or.reduce(codes.astype(np.uint8) << shifts, axis=-2)
    return packed


def nearest(x: Floats) -> npt.NDArray[np.int32]:
    """`nearest_int` of ggml: the nearest integers, ties to even, of |x| < 2^22, and what it returns for others."""
    bits: npt.NDArray[np.int32] = (x + _MAGIC).view(np.int32) & np.int32(0x007FFFFF)
    return bits - np.int32(0x00400000)


def truncated(x: Floats, largest: int) -> Bytes:
    """The integer parts of x >= 0, limited to `largest`; 0 for what is not finite, as x86 converts it."""
    return np.minimum(np.trunc(np.where(np.isfinite(x), x, 0)), largest).astype(np.uint8)


def reciprocal(scale: Floats) -> Floats:
    """1 / scale, and 0 for 0."""
    return np.where(scale == 0, np.float32(0), np.float32(1) / scale)
