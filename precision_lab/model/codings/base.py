"""The protocol of a coding: a format that stores the weight of a linear, and the rounding of its inputs.

A coding is a frozen dataclass that holds settings alone, one file for each family of formats. The arrays that it makes
belong to the linear (`model.coded.CodedLinear`), under the names that `encode` gives them; `weight` holds the codes.
Formats that MLX multiplies with itself are in `numerics.packing`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import mlx.core as mx

Arrays = Mapping[str, mx.array]
"""The arrays of a coded weight by name: `weight`, the codes, then scales and whatever else the format stores."""


class Inputs(ABC):
    """A rounding of the inputs of a linear to a few bits, as hardware with narrow products does."""

    name: ClassVar[str]

    @abstractmethod
    def rounded(self, x: mx.array) -> mx.array:
        """The values (..., channels), fp32, that remain of x (..., channels), fp32. What is not finite stays so."""


class Coding(ABC):
    """A format for the weight of a linear."""

    name: ClassVar[str]

    def unfit(self, shape: tuple[int, ...]) -> str | None:
        """Why a weight of shape (outputs, channels) cannot be stored, such as "48 channels, expected a multiple of 32".

        None if it can.
        """
        return None

    @abstractmethod
    def encode(self, weight: mx.array) -> dict[str, mx.array]:
        """The arrays that store `weight`, (outputs, channels) in fp32, whose shape is fit."""

    @abstractmethod
    def decode(self, arrays: Arrays) -> mx.array:
        """The weight (outputs, channels), fp32, that the arrays stand for."""

    def product(self, arrays: Arrays, x: mx.array, inputs: Inputs | None = None) -> mx.array:
        """`x @ decoded.T` (..., outputs) in fp32 for x (..., channels) in fp32, whose values `inputs` rounds first.

        A format that multiplies in another basis rounds the inputs there.
        """
        return (x if inputs is None else inputs.rounded(x)) @ self.decode(arrays).T
