"""Blocks of 32 weights with one float16 scale, and in the `_1` formats a float16 offset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import numpy as np

from precision_lab.model.codings.gguf.blocks import (
    BlockFormat,
    Bytes,
    Floats,
    Groups,
    fields,
    half,
    half_bytes,
    packed_fields,
    reciprocal,
    truncated,
)


class _Small(BlockFormat):
    """Codes of `bits` bits: 4 low ones in pairs of weights 16 apart, and the fifth of all weights in 4 bytes before."""

    values = 32
    bits: ClassVar[int]

    def _packed(self, codes: Bytes) -> list[Bytes]:
        low = packed_fields((codes & 15).reshape(-1, 2, 16), 4)
        return [low] if self.bits == 4 else [np.packbits(codes >> 4, axis=-1, bitorder="little"), low]

    def _codes(self, packed: mx.array) -> mx.array:
        """Codes (blocks, 32), uint8, of the bytes after scale and offset."""
        low = fields(packed[:, -16:], 4, 2).reshape(-1, 32)
        if self.bits == 4:
            return low
        high = fields(packed[:, :4], 1, 8).swapaxes(-1, -2).reshape(-1, 32)
        return low | (high << 4)


class _Symmetric(_Small):
    """scale * (code - 2^(bits - 1)); the weight of largest magnitude gets the lowest code."""

    halves = (0,)

    def encoded(self, blocks: Floats) -> Bytes:
        middle = 1 << (self.bits - 1)
        peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)
        scale = peak / np.float32(-middle)
        codes = truncated(blocks * reciprocal(scale) + np.float32(middle + 0.5), 2 * middle - 1)
        return np.concatenate([half_bytes(scale), *self._packed(codes)], axis=-1)

    def groups(self, blocks: mx.array) -> Groups:
        codes = self._codes(blocks[:, 2:]).astype(mx.float32) - (1 << (self.bits - 1))
        return Groups(codes[:, None], half(blocks, 0)[:, None])


class _Affine(_Small):
    """scale * code + offset, the least weight."""

    halves = (0, 2)

    def encoded(self, blocks: Floats) -> Bytes:
        low, high = blocks.min(axis=-1, keepdims=True), blocks.max(axis=-1, keepdims=True)
        largest = (1 << self.bits) - 1
        scale = (high - low) / np.float32(largest)
        codes = truncated((blocks - low) * reciprocal(scale) + np.float32(0.5), largest)
        return np.concatenate([half_bytes(scale), half_bytes(low), *self._packed(codes)], axis=-1)

    def groups(self, blocks: mx.array) -> Groups:
        codes = self._codes(blocks[:, 4:]).astype(mx.float32)
        return Groups(codes[:, None], half(blocks, 0)[:, None], half(blocks, 2)[:, None])


@dataclass(frozen=True)
class Q4_0(_Symmetric):
    """4.5 bits a weight."""

    name, number, size, bits, limits = "q4_0", 2, 18, 4, (-8, 7)


@dataclass(frozen=True)
class Q4_1(_Affine):
    """5 bits a weight."""

    name, number, size, bits, limits = "q4_1", 3, 20, 4, (0, 15)


@dataclass(frozen=True)
class Q5_0(_Symmetric):
    """5.5 bits a weight."""

    name, number, size, bits, limits = "q5_0", 6, 22, 5, (-16, 15)


@dataclass(frozen=True)
class Q5_1(_Affine):
    """6 bits a weight."""

    name, number, size, bits, limits = "q5_1", 7, 24, 5, (0, 31)


@dataclass(frozen=True)
class Q8_0(BlockFormat):
    """8.5 bits a weight: scale * code, with signed codes to 127."""

    name, number, values, size, halves, limits = "q8_0", 8, 32, 34, (0,), (-127, 127)

    def encoded(self, blocks: Floats) -> Bytes:
        scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
        scaled = blocks * reciprocal(scale)
        size = np.abs(np.where(np.isfinite(scaled), scaled, 0))
        codes = np.copysign(np.trunc(size) + np.trunc(2 * (size - np.trunc(size))), scaled)  # ties away from zero
        return np.concatenate([half_bytes(scale), codes.astype(np.int8).view(np.uint8)], axis=-1)

    def groups(self, blocks: mx.array) -> Groups:
        codes = mx.contiguous(blocks[:, 2:]).view(mx.int8).astype(mx.float32)
        return Groups(codes[:, None], half(blocks, 0)[:, None])
