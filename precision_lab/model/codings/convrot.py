"""Another coding in a rotated basis, which spreads outliers over the channels of a group: ConvRot.

Weight and inputs are multiplied by the same orthogonal matrix, group by group along the input channels, so that their
product is unchanged until one of them is rounded. The matrix is a regular Hadamard matrix: Kronecker powers of one of
order 4 whose rows all have the same sum, divided by the square root of the order (ConvRot, arXiv 2512.03673; the same
matrix in comfy-kitchen 0.2, `int8_utils._build_hadamard`). It is symmetric, therefore its own inverse, and its elements
are powers of two, so that rotating whole numbers is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from precision_lab.errors import InputError
from precision_lab.model.codings.base import Arrays, Coding, Inputs, Neighbours, not_a_multiple
from precision_lab.model.codings.int8 import Int8, Int8Inputs

GROUPS = (256, 64, 16)
"""The channels that are rotated together, the default first."""

_ORDER_4 = ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1))


@dataclass(frozen=True)
class ConvRot(Coding):
    """The arrays of `coding` for the rotated weight. Inputs are rotated before they are rounded.

    group: the largest of GROUPS up to this one that divides the channels is the number that are rotated together.
    """

    coding: Coding = field(default_factory=Int8)
    group: int = GROUPS[0]

    name = "convrot"

    def __post_init__(self) -> None:
        _check_group("convrot.group", self.group)

    def unfit(self, shape: tuple[int, ...]) -> str | None:
        return not_a_multiple(shape[1], GROUPS[-1]) or self.coding.unfit(shape)

    def encode(self, weight: mx.array) -> dict[str, mx.array]:
        return self.coding.encode(rotated(weight, self.group))

    def decode(self, arrays: Arrays) -> mx.array:
        return rotated(self.coding.decode(arrays), self.group)

    def product(self, arrays: Arrays, x: mx.array, inputs: Inputs | None = None) -> mx.array:
        return self.coding.product(arrays, rotated(x, self.group), inputs)

    def neighbours(self, arrays: Arrays) -> Neighbours | None:
        return self.coding.neighbours(arrays)

    def to_basis(self, weight: mx.array) -> mx.array:
        return rotated(weight, self.group)

    def from_basis(self, values: mx.array) -> mx.array:
        return rotated(values, self.group)


@dataclass(frozen=True)
class ConvRotInputs(Inputs):
    """What `inputs` leaves of the rotated channels, rotated back: the rounding of a `ConvRot` without its weight."""

    inputs: Inputs = field(default_factory=Int8Inputs)
    group: int = GROUPS[0]

    name = "convrot"

    def __post_init__(self) -> None:
        _check_group("convrot_inputs.group", self.group)

    def unfit(self, channels: int) -> str | None:
        return not_a_multiple(channels, GROUPS[-1]) or self.inputs.unfit(channels)

    def rounded(self, x: mx.array) -> mx.array:
        return rotated(self.inputs.rounded(rotated(x, self.group)), self.group)


def rotated(x: mx.array, group: int) -> mx.array:
    """x (..., channels), fp32, with each group of channels multiplied by the matrix, which also undoes it.

    The groups have the largest size of GROUPS up to `group` that divides the channels.
    """
    size = next(size for size in GROUPS if size <= group and x.shape[-1] % size == 0)
    return (x.reshape(-1, size) @ mx.array(regular_hadamard(size))).reshape(x.shape)


@cache
def regular_hadamard(size: int) -> np.ndarray[Any, Any]:
    """The orthonormal regular Hadamard matrix (size, size), fp32; size is a power of 4."""
    order_4: np.ndarray[Any, Any] = np.array(_ORDER_4, np.float32) / 2
    matrix = order_4
    while len(matrix) < size:
        matrix = np.kron(matrix, order_4)
    assert len(matrix) == size, f"{size} is no power of 4"
    return matrix


def _check_group(setting: str, group: object) -> None:
    if group not in GROUPS:
        raise InputError(f"{setting} is {group!r}, expected one of {', '.join(map(str, GROUPS))}")
