"""The matrices of a fused block: linears side by side, in 16 or 32 bits or stored in fewer.

A matrix is a number of arrays, and how they multiply (`Stored`), which is hashable: blocks that are stored alike share
one compiled function. Packed weights have two routes on a GPU: MLX's product of packed weights, or decoding once and a
dense product. The first is faster for few rows, the second for many, so `routes` measures where they meet.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.coded import LINEARS, CodedLinear
from precision_lab.model.codings.base import Coding, Inputs
from precision_lab.model.quantized import packing_of
from precision_lab.numerics.packing import Quantization
from precision_lab.techniques.fast.block import packed
from precision_lab.techniques.fast.decoding import decoded, packed_product

_OF_PACKED = ("weight", "scales", "biases", "tensor_scale")

Arrays = tuple[mx.array, ...]


class Stored(ABC):
    """How the arrays of a matrix multiply."""

    @abstractmethod
    def product(self, x: mx.array, arrays: Arrays) -> mx.array:
        """`x @ weight.T` (..., outputs) in the dtype of x (..., channels)."""


class Matrix(NamedTuple):
    """The weights of some linears side by side."""

    stored: Stored
    arrays: Arrays


Route = Callable[[Quantization, Arrays], int]
"""From how many rows on the weights in these arrays are decoded for a product."""


def matrix(linears: Sequence[nn.Module], route: Route) -> Matrix:
    """The weights of `linears`, of any class in LINEARS, side by side.

    Where they are stored alike, their arrays become views of joint ones, so that one product serves all.
    """
    first, *others = linears
    if all(type(linear) is type(first) for linear in others):
        if not isinstance(first, nn.QuantizedLinear | CodedLinear):
            return Matrix(Dense(), ((packed(linears, "weight") if others else first.weight).T,))
        if isinstance(first, nn.QuantizedLinear) and (not others or _alike(linears)):
            present = [name for name in _OF_PACKED if name in first]
            arrays = tuple(packed(linears, name) if others else first[name] for name in present)
            quantization = packing_of(first)
            return Matrix(Packed(quantization, route(quantization, arrays)), arrays)
    if not others:
        assert isinstance(first, CodedLinear), f"{type(first).__name__} is none of {LINEARS}"
        names = tuple(first.arrays)
        return Matrix(Coded(first.coding, first.inputs, names), tuple(first[name] for name in names))
    parts = [matrix([linear], route) for linear in linears]
    return Matrix(
        Beside(tuple((part.stored, len(part.arrays)) for part in parts)),
        tuple(array for part in parts for array in part.arrays),
    )


def _alike(linears: Sequence[nn.Module]) -> bool:
    kinds = {packing_of(linear) for linear in linears}
    return len(kinds) == 1 and not kinds.pop().tensor_scale


@dataclass(frozen=True)
class Dense(Stored):
    """One array (channels, outputs)."""

    def product(self, x: mx.array, arrays: Arrays) -> mx.array:
        return x @ arrays[0]


@dataclass(frozen=True)
class Packed(Stored):
    """The arrays of `mx.quantize`, decoded for products of at least `decode_from` rows."""

    quantization: Quantization
    decode_from: int

    def product(self, x: mx.array, arrays: Arrays) -> mx.array:
        if math.prod(x.shape[:-1]) < self.decode_from:
            return packed_product(x, self.quantization, arrays)
        return x @ decoded(self.quantization, arrays, x.dtype).T


@dataclass(frozen=True)
class Coded(Stored):
    """The arrays of a coding by name; products in fp32, rounded once."""

    coding: Coding
    inputs: Inputs | None
    names: tuple[str, ...]

    def product(self, x: mx.array, arrays: Arrays) -> mx.array:
        named = dict(zip(self.names, arrays, strict=True))
        return self.coding.product(named, x.astype(mx.float32), self.inputs).astype(x.dtype)


@dataclass(frozen=True)
class Beside(Stored):
    """Matrices that are stored differently, and how many arrays each has."""

    parts: tuple[tuple[Stored, int], ...]

    def product(self, x: mx.array, arrays: Arrays) -> mx.array:
        results, rest = [], arrays
        for stored, number in self.parts:
            results.append(stored.product(x, rest[:number]))
            rest = rest[number:]
        return mx.concatenate(results, axis=-1)
