"""The protocol of a coding: a format that stores the weight of a linear, and the rounding of its inputs.

A coding is a frozen dataclass that holds settings alone, one file for each family of formats. The arrays that it makes
belong to the linear (`model.coded.CodedLinear`), under the names that `encode` gives them; `weight` holds the codes.
Formats that MLX multiplies with itself are in `numerics.packing`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import mlx.core as mx

from precision_lab.errors import InputError

Arrays = Mapping[str, mx.array]
"""The arrays of a coded weight by name: `weight`, the codes, then scales and whatever else the format stores."""


class Neighbours(NamedTuple):
    """The codes of a weight, and the distances to the values of the next codes, all (outputs, channels).

    codes: integers. below, above: to the next smaller and the next larger value of the same scale, fp32, at least 0;
    infinite at the ends of the scale. rising: 1 where a larger code is a larger value, else -1; it may be a number for
    all. Where the values of a format are those of another basis (see `Coding.to_basis`), so are these.
    """

    codes: mx.array
    below: mx.array
    above: mx.array
    rising: mx.array | int = 1


def evenly_spaced(codes: mx.array, scale: mx.array, least: int, largest: int) -> Neighbours:
    """The neighbours of integer codes from `least` to `largest`, whose values are scale * code and maybe an offset.

    scale: fp32, broadcast to the shape of `codes`; it may be negative.
    """
    step = mx.broadcast_to(mx.abs(scale), codes.shape)
    falling = scale < 0
    lowest, highest = mx.where(falling, largest, least), mx.where(falling, least, largest)
    below, above = (mx.where(codes == end, mx.inf, step) for end in (lowest, highest))
    return Neighbours(codes, below, above, mx.where(falling, -1, 1))


class Inputs(ABC):
    """A rounding of the inputs of a linear to a few bits, as hardware with narrow products does."""

    name: ClassVar[str]

    def unfit(self, channels: int) -> str | None:
        """Why inputs of so many channels cannot be rounded, such as "48 channels, expected a multiple of 64".

        None if they can.
        """
        return None

    @abstractmethod
    def rounded(self, x: mx.array) -> mx.array:
        """The values (..., channels), fp32, that remain of x (..., channels), fp32. What is not finite stays so."""


def not_a_multiple(channels: int, of: int) -> str | None:
    """Why `channels` do not divide into groups of `of`, as `unfit` says it; None if they do."""
    return f"{channels} channels, expected a multiple of {of}" if channels % of else None


class Coding(ABC):
    """A format for the weight of a linear.

    of_channels: the names of arrays that belong to the channels, so that weights of some of the outputs share them.
    """

    name: ClassVar[str]
    of_channels: ClassVar[frozenset[str]] = frozenset()

    def unfit(self, shape: tuple[int, ...]) -> str | None:
        """Why a weight of shape (outputs, channels) cannot be stored, such as "48 channels, expected a multiple of 32".

        None if it can.
        """
        return None

    @abstractmethod
    def encode(self, weight: mx.array) -> dict[str, mx.array]:
        """The arrays that store `weight`, (outputs, channels) in fp32, whose shape is fit."""

    def encode_stochastically(self, weight: mx.array, key: mx.array) -> dict[str, mx.array]:
        """As `encode`, with each code rounded up or down at random, the nearer one with the higher odds.

        Raises InputError for a format without such a rounding.
        """
        raise InputError(f"{self.name} has no stochastic rounding, expected rounding: nearest")

    def encode_stored(self, weight: mx.array) -> dict[str, mx.array]:
        """The same for a weight in the dtype of its checkpoint."""
        return self.encode(weight.astype(mx.float32))

    @abstractmethod
    def decode(self, arrays: Arrays) -> mx.array:
        """The weight (outputs, channels), fp32, that the arrays stand for."""

    def product(self, arrays: Arrays, x: mx.array, inputs: Inputs | None = None) -> mx.array:
        """`x @ decoded.T` (..., outputs) in fp32 for x (..., channels) in fp32, whose values `inputs` rounds first.

        A format that multiplies in another basis rounds the inputs there.
        """
        return (x if inputs is None else inputs.rounded(x)) @ self.decode(arrays).T

    def neighbours(self, arrays: Arrays) -> Neighbours | None:
        """The codes in `arrays` and what lies next to them, or None for a format whose codes nothing asks for yet."""
        return None

    def to_basis(self, weight: mx.array) -> mx.array:
        """A linear map of (outputs, channels), fp32, into the basis whose values the codes stand for."""
        return weight

    def from_basis(self, values: mx.array) -> mx.array:
        """The inverse of `to_basis`."""
        return values
