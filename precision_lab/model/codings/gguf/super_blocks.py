"""The k-quants: super-blocks of 256 weights, groups of 16 or 32 whose scales are coded themselves.

A group's scale is a float16 of the super-block times a small integer; the affine formats subtract an offset of that
kind. Encoders are the `quantize_row_*_ref` of ggml.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from precision_lab.model.codings.gguf import search
from precision_lab.model.codings.gguf.blocks import (
    BlockFormat,
    Bytes,
    Floats,
    Groups,
    fields,
    half,
    half_bytes,
    nearest,
    packed_fields,
)


class _SuperBlock(BlockFormat):
    values = 256
    group: ClassVar[int]

    def encoded(self, blocks: Floats) -> Bytes:
        finite = np.isfinite(blocks).all(axis=-1, keepdims=True)
        return self._encoded(np.where(finite, blocks, np.float32(0)), np.where(finite, 0, np.nan).astype(np.float32))

    def _encoded(self, blocks: Floats, taint: Floats) -> Bytes:
        """As `encoded` for finite blocks; adds `taint` (blocks, 1), zero or NaN, to the float16 scales."""
        raise NotImplementedError

    def _columns(self, blocks: Floats) -> Floats:
        """(weights of a group, groups)."""
        return np.ascontiguousarray(blocks.reshape(-1, self.group).T)

    def _rows(self, codes: Bytes | Floats) -> Bytes:
        """The codes (blocks, groups of a block, weights of a group) of codes (weights of a group, groups)."""
        return np.ascontiguousarray(codes.T).astype(np.uint8).reshape(-1, self.values // self.group, self.group)

    def _recoded(self, blocks: Floats, scale: Floats, offset: Floats | float, codes: Bytes) -> Bytes:
        """The codes nearest to (weight + offset) / scale, less the least one; `codes` where a scale is zero.

        scale, offset: (blocks, groups, 1), from the numbers that are stored.
        """
        low, high = self.limits
        new = np.clip(nearest((blocks.reshape(codes.shape) + offset) / scale), low, high) - low
        return np.where(scale == 0, codes, new.astype(np.uint8))


class _Affine(_SuperBlock):
    """(scale * group's scale) * code - (offset scale * group's offset)."""

    steps: ClassVar[int]
    first: ClassVar[float]
    bits: ClassVar[int]
    largest_scale: ClassVar[int]

    def _encoded(self, blocks: Floats, taint: Floats) -> Bytes:
        x = self._columns(blocks)
        found = search.affine(x, self._weights(x), self.limits[1], self.first, self.steps, absolute=self.bits == 2)
        groups = self.values // self.group
        scale, scales = self._scales(found.scale.reshape(-1, groups))
        offset, offsets = self._scales(found.offset.reshape(-1, groups))
        kept, kept_offset = (a.astype(np.float16).astype(np.float32) for a in (scale, offset))
        own = (kept * scales)[..., None], (kept_offset * offsets)[..., None]
        codes = self._recoded(blocks, *own, self._rows(found.codes))
        return self._joined(half_bytes(scale + taint), half_bytes(offset + taint), scales, offsets, codes)

    def _weights(self, x: Floats) -> Floats:
        return np.sqrt(search.summed(x * x) / np.float32(self.group)) + np.abs(x)

    def _scales(self, values: Floats) -> tuple[Floats, Bytes]:
        """The scale (blocks, 1) and the codes (blocks, groups) of the groups' scales or offsets."""
        peak = np.maximum(values.max(axis=-1, keepdims=True), np.float32(0))
        factor = np.where(peak > 0, np.float32(self.largest_scale) / peak, np.float32(0))
        codes = np.minimum(nearest(factor * values).astype(np.uint8), self.largest_scale)
        return peak / np.float32(self.largest_scale), codes.astype(np.uint8)

    def _joined(self, scale: Bytes, offset: Bytes, scales: Bytes, offsets: Bytes, codes: Bytes) -> Bytes:
        raise NotImplementedError


class _Affine6(_Affine):
    """Eight groups of 32, scales and offsets of 6 bits in 12 bytes."""

    group, largest_scale, halves = 32, 63, (0, 2)

    def _joined(self, scale: Bytes, offset: Bytes, scales: Bytes, offsets: Bytes, codes: Bytes) -> Bytes:
        packed = [
            scales[:, :4] | (scales[:, 4:] >> 4 << 6),
            offsets[:, :4] | (offsets[:, 4:] >> 4 << 6),
            (scales[:, 4:] & 15) | (offsets[:, 4:] & 15) << 4,
        ]
        low = packed_fields((codes & 15).reshape(-1, 4, 2, 32), 4).reshape(-1, 128)
        high = [packed_fields(codes >> 4, 1)] if self.bits == 5 else []
        return np.concatenate([scale, offset, *packed, *high, low], axis=-1)

    def groups(self, blocks: mx.array) -> Groups:
        first, second, third = (blocks[:, i : i + 4] for i in (4, 8, 12))
        scales = mx.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=-1)
        offsets = mx.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=-1)
        codes = fields(blocks[:, -128:].reshape(-1, 4, 32), 4, 2).reshape(-1, 8, 32)
        if self.bits == 5:
            codes = codes | (fields(blocks[:, 16:48], 1, 8) << 4)
        scale, offset = half(blocks, 0) * scales.astype(mx.float32), half(blocks, 2) * offsets.astype(mx.float32)
        return Groups(codes.astype(mx.float32), scale[..., None], -offset[..., None])


@dataclass(frozen=True)
class Q4_K(_Affine6):
    """4.5 bits a weight."""

    name, number, size, bits, limits, steps, first = "q4_k", 12, 144, 4, (0, 15), 20, -1.0


@dataclass(frozen=True)
class Q5_K(_Affine6):
    """5.5 bits a weight."""

    name, number, size, bits, limits, steps, first = "q5_k", 13, 176, 5, (0, 31), 15, -0.5


@dataclass(frozen=True)
class Q2_K(_Affine):
    """2.625 bits a weight: sixteen groups of 16, scales and offsets of 4 bits."""

    name, number, size, bits, limits, steps, first = "q2_k", 10, 84, 2, (0, 3), 15, -0.5
    group, largest_scale, halves = 16, 15, (80, 82)

    def _weights(self, x: Floats) -> Floats:
        return np.abs(x)

    def _joined(self, scale: Bytes, offset: Bytes, scales: Bytes, offsets: Bytes, codes: Bytes) -> Bytes:
        return np.concatenate([scales | offsets << 4, _two_bits(codes), scale, offset], axis=-1)

    def groups(self, blocks: mx.array) -> Groups:
        scale = half(blocks, 80) * (blocks[:, :16] & 15).astype(mx.float32)
        offset = half(blocks, 82) * (blocks[:, :16] >> 4).astype(mx.float32)
        codes = fields(blocks[:, 16:80].reshape(-1, 2, 32), 2, 4).reshape(-1, 16, 16)
        return Groups(codes.astype(mx.float32), scale[..., None], -offset[..., None])


@dataclass(frozen=True)
class Q3_K(_SuperBlock):
    """3.4375 bits a weight: sixteen groups of 16 with signed scales of 6 bits; (scale * group's scale) * code."""

    name, number, size, halves, limits, group = "q3_k", 11, 110, (108,), (-4, 3), 16

    def _encoded(self, blocks: Floats, taint: Floats) -> Bytes:
        found = search.refined(self._columns(blocks), 4)
        values = found.scale.reshape(-1, 16)
        peak = _largest(values)
        factor = np.where(peak == 0, np.float32(0), np.float32(-32) / peak)
        scales = np.clip(nearest(factor * values).astype(np.int8), -32, 31).astype(np.int32) + 32
        scale = np.where(peak == 0, np.float32(0), np.float32(1) / factor)
        own = scale.astype(np.float16).astype(np.float32) * (scales - 32).astype(np.float32)
        codes = self._recoded(blocks, own[..., None], 0.0, self._rows(found.codes + 4))
        stored = np.where(peak == 0, 0, scales).astype(np.uint8)
        return np.concatenate(
            [
                packed_fields(codes.reshape(-1, 8, 32) >> 2, 1),
                _two_bits(codes & 3),
                packed_fields((stored & 15).reshape(-1, 2, 8), 4),
                packed_fields((stored >> 4).reshape(-1, 4, 4), 2),
                half_bytes(scale + taint),
            ],
            axis=-1,
        )

    def groups(self, blocks: mx.array) -> Groups:
        low, high = fields(blocks[:, 96:104], 4, 2).reshape(-1, 16), fields(blocks[:, 104:108], 2, 4).reshape(-1, 16)
        scale = half(blocks, 108) * ((low | (high << 4)).astype(mx.float32) - 32)
        codes = fields(blocks[:, 32:96].reshape(-1, 2, 32), 2, 4).reshape(-1, 8, 32)
        codes = codes | (fields(blocks[:, :32], 1, 8) << 2)
        return Groups(codes.reshape(-1, 16, 16).astype(mx.float32) - 4, scale[..., None])


@dataclass(frozen=True)
class Q6_K(_SuperBlock):
    """6.5625 bits a weight: sixteen groups of 16 with signed scales of 8 bits; (scale * group's scale) * code."""

    name, number, size, halves, limits, group = "q6_k", 14, 210, (208,), (-32, 31), 16

    def _encoded(self, blocks: Floats, taint: Floats) -> Bytes:
        found = search.symmetric(self._columns(blocks), 32)
        values = found.scale.reshape(-1, 16)
        peak = _largest(values)
        zero = np.abs(peak) < search.LEAST
        factor = np.where(zero, np.float32(0), np.float32(-128) / peak)
        scale = np.where(zero, np.float32(0), np.float32(1) / factor)
        scales = np.minimum(nearest(factor * values), 127).astype(np.int8)
        own = scale.astype(np.float16).astype(np.float32) * scales.astype(np.float32)
        codes = self._recoded(blocks, own[..., None], 0.0, self._rows(found.codes + 32))
        codes = np.where(zero[..., None], np.uint8(0), codes).reshape(-1, 2, 4, 32)
        return np.concatenate(
            [
                packed_fields((codes & 15).reshape(-1, 2, 2, 64), 4).reshape(-1, 128),
                packed_fields(codes >> 4, 2).reshape(-1, 64),
                scales.view(np.uint8),
                half_bytes(scale + taint),
            ],
            axis=-1,
        )

    def groups(self, blocks: mx.array) -> Groups:
        low = fields(blocks[:, :128].reshape(-1, 2, 64), 4, 2).reshape(-1, 8, 32)
        codes = low | (fields(blocks[:, 128:192].reshape(-1, 2, 32), 2, 4).reshape(-1, 8, 32) << 4)
        scale = half(blocks, 208) * mx.contiguous(blocks[:, 192:208]).view(mx.int8).astype(mx.float32)
        return Groups(codes.reshape(-1, 16, 16).astype(mx.float32) - 32, scale[..., None])


def _largest(values: Floats) -> Floats:
    """The first number of largest magnitude of each row, (rows, 1). As in ggml, NaN never is."""
    numbers = np.where(np.isnan(values), np.float32(0), values)
    return np.take_along_axis(numbers, np.abs(numbers).argmax(axis=-1, keepdims=True), axis=-1)


def _two_bits(codes: npt.NDArray[np.integer[Any]]) -> Bytes:
    """The bytes (blocks, 64) of codes of two bits, of any shape with 256 of them a block."""
    return packed_fields(codes.reshape(-1, 2, 4, 32), 2).reshape(-1, 64)
