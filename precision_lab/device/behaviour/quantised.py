"""Quantised weights of known value: random codes, packed here and decoded here, by the definitions of the formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from precision_lab.device.behaviour.storage import Array

Codes = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Mode:
    """A mode of mx.quantize. A scale of 1 leaves the values of the codes; affine subtracts the middle code."""

    name: str
    group: int
    bits: int

    @property
    def title(self) -> str:
        return f"{self.name} {self.bits}-bit" if self.name == "affine" else self.name

    @property
    def unit_scale(self) -> float:
        """The scale that stands for 1: 1 itself, 127 as a power of two (OCP Microscaling 1.0), 0x38 in float8 e4m3."""
        return {"affine": 1.0, "nvfp4": 0x38}.get(self.name, 127)


MODES = (
    Mode("affine", 64, 4),
    Mode("affine", 64, 8),
    Mode("mxfp4", 32, 4),
    Mode("mxfp8", 32, 8),
    Mode("nvfp4", 16, 4),
)


@dataclass(frozen=True)
class Weights:
    """Weights of a product x @ w.T. values: (outputs, inner), what the codes stand for; packed: 32-bit words."""

    mode: Mode
    values: Array
    packed: Codes

    @classmethod
    def draw(cls, mode: Mode, outputs: int, inner: int, rng: np.random.Generator, *, positive: bool = False) -> Weights:
        """Random codes with a scale of 1. The values of all modes are integers of up to 128, or sixteenths of them."""
        codes = rng.integers(0, 2**mode.bits, (outputs, inner)).astype(np.uint8)
        if mode.name == "mxfp8":
            codes = ((codes & 0x87) | 0x38).astype(np.uint8)  # from 1 to 1.875, of both signs
        if positive:
            sign = 2 ** (mode.bits - 1)
            codes = (codes | sign if mode.name == "affine" else codes & (sign - 1)).astype(np.uint8)
        return cls(mode, decoded(mode, codes), packed(codes, mode.bits))

    @property
    def settings(self) -> dict[str, Any]:
        """group_size, bits and mode, as MLX's functions take them."""
        return {"group_size": self.mode.group, "bits": self.mode.bits, "mode": self.mode.name}


def decoded(mode: Mode, codes: npt.NDArray[np.uint8]) -> Array:
    """The values of codes: offset binary for affine, float4 e2m1 or float8 e4m3 (OCP) for the others."""
    if mode.name == "affine":
        return codes.astype(np.float64) - 2 ** (mode.bits - 1)
    kind = ml_dtypes.float8_e4m3fn if mode.bits == 8 else ml_dtypes.float4_e2m1fn
    return codes.view(kind).astype(np.float64)


def packed(codes: npt.NDArray[np.uint8], bits: int) -> Codes:
    """Codes of 4 or 8 bits in 32-bit words, the first in the lowest bits, along the last axis."""
    each = 32 // bits
    parts = codes.astype(np.uint32).reshape(*codes.shape[:-1], -1, each)
    return np.bitwise_or.reduce(parts << (bits * np.arange(each, dtype=np.uint32)), axis=-1)


def one_term_rows(rows: int, inner: int) -> Array:
    """Rows with a single 1 or -1, each beside the next: x @ w.T gives columns of w, exact in every format."""
    x = np.zeros((rows, inner))
    x[np.arange(rows), np.arange(rows) * 7 % inner] = np.where(np.arange(rows) % 3, 1.0, -1.0)
    return x
