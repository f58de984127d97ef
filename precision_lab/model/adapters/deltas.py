"""Changes of a linear's weight that an adapter stores in factors: low rank (LoRA) and Kronecker products (LoKr).

B batch, L tokens, K channels, N outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

import mlx.core as mx

from precision_lab.model.layers import on_cpu

Factors = Mapping[str, mx.array]
"""The stored arrays of a delta by name, in the dtype of the file; they are read when they are evaluated."""


@dataclass(frozen=True, eq=False)
class Delta(ABC):
    """A change (N, K) of a weight: `scale` times a product of `factors`."""

    factors: Factors
    scale: float

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(outputs, channels)."""

    @abstractmethod
    def matrix(self) -> mx.array:
        """The change (N, K) in fp32, not yet evaluated and not kept."""

    @abstractmethod
    def product(self, x: mx.array) -> mx.array:
        """`x @ matrix.T` (B, L, N) in the dtype of x (B, L, K), factor by factor, rounded after each."""

    def times(self, strength: float) -> Delta:
        """The change multiplied by `strength`."""
        return replace(self, scale=self.scale * strength)

    def _scaled(self, y: mx.array) -> mx.array:
        return y if self.scale == 1 else y * self.scale


class LowRank(Delta):
    """`scale * up @ down` with `down` (rank, K) and `up` (N, rank) (Hu et al., arXiv:2106.09685).

    The product rounds where PEFT does: after `down`, after `up`, and after the scale.
    """

    @property
    def shape(self) -> tuple[int, int]:
        return self.factors["up"].shape[0], self.factors["down"].shape[1]

    def matrix(self) -> mx.array:
        up, down = (self.factors[name].astype(mx.float32) for name in ("up", "down"))
        return self._scaled(up @ down)

    def product(self, x: mx.array) -> mx.array:
        return self._scaled(_product(_product(x, self.factors["down"]), self.factors["up"]))

    def rows(self, begin: int, end: int) -> LowRank:
        """The change of some of the outputs."""
        return LowRank({"up": self.factors["up"][begin:end], "down": self.factors["down"]}, self.scale)


class Kronecker(Delta):
    """`scale * kron(w1, w2)`, where w1 and w2 may each be stored as a product `_a @ _b` (LyCORIS, arXiv:2309.14859)."""

    @property
    def shape(self) -> tuple[int, int]:
        (n1, k1), (n2, k2) = (self._factor_shape(name) for name in ("w1", "w2"))
        return n1 * n2, k1 * k2

    def _factor_shape(self, name: str) -> tuple[int, int]:
        if name in self.factors:
            outputs, channels = self.factors[name].shape
        else:
            outputs, channels = self.factors[f"{name}_a"].shape[0], self.factors[f"{name}_b"].shape[1]
        return outputs, channels

    def _factor(self, name: str) -> mx.array:
        """w1 or w2 in fp32."""
        if name in self.factors:
            return self.factors[name].astype(mx.float32)
        a, b = (self.factors[f"{name}_{part}"].astype(mx.float32) for part in "ab")
        return a @ b

    def matrix(self) -> mx.array:
        return self._scaled(mx.kron(self._factor("w1"), self._factor("w2")))

    def product(self, x: mx.array) -> mx.array:
        w1, w2 = self._factor("w1"), self._factor("w2")
        grid = x.reshape(*x.shape[:-1], w1.shape[1], w2.shape[1])
        inner = _product(grid, w2).swapaxes(-1, -2)
        return self._scaled(_product(inner, w1).swapaxes(-1, -2).flatten(-2))


def _product(x: mx.array, weight: mx.array) -> mx.array:
    """`x @ weight.T`, products summed in fp32 and rounded once to the dtype of x; see `model.layers.Linear`."""
    if on_cpu():
        return (x.astype(mx.float32) @ weight.astype(mx.float32).T).astype(x.dtype)
    return x @ weight.astype(x.dtype).T
