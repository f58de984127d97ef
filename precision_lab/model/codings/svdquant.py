"""SVDQuant: a low-rank part in 16 bits takes what is large, and a narrow format the rest.

The weight, with its channels multiplied by a vector of smoothing if there is one, is the product of two thin factors
plus a residual. The factors are rounded first, so that the residual makes up for it. Inputs are divided by the vector
and rounded for the residual alone; the factor `down` absorbs the vector, and takes inputs as they are
(https://arxiv.org/abs/2411.05007; the same arrays in comfy-kitchen 0.2, `TensorCoreSVDQuantW4A4Layout`).

The factors come from subspace iteration with a fixed start (Halko, Martinsson and Tropp 2011, algorithm 4.4), since a
whole SVD of a wide weight takes minutes. 3072 x 12288 weights cost 18 GFlop, about 1 s of one core. The rms of what
remains is at most 2 % above that of the best factors of the rank. They are the same at each call on one machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from precision_lab.errors import InputError
from precision_lab.model.codings.base import Arrays, Coding, Inputs, Neighbours
from precision_lab.model.codings.int4 import GROUP, Int4

MOST_RANK = 32
"""The rank by default, that of nunchaku's files, unless the weight is narrow."""
SHARE = 16
"""By default, the rank is at most the smaller side of the weight divided by this."""

_FACTORS = mx.bfloat16
_BESIDE = 8
"""Columns by which the subspace is wider than the rank."""
_ITERATIONS = 2


def _int4() -> Coding:
    return Int4(GROUP, scales="bfloat16")


@dataclass(frozen=True)
class SVDQuant(Coding):
    """The arrays of `residual`, and `up` (outputs, rank), `down` (channels, rank) and `smooth` (channels,), bfloat16.

    rank: of the product of the factors; null for 32, or a sixteenth of the smaller side of the weight if that is less.

    smooth: the exponent e of `smooth`, (largest magnitude of the weight / largest magnitude of the channel)^e. It moves
    the differences between the channels of the weight to the inputs: it is the choice of DeepCompressor that needs no
    activations, alpha = 0 and beta = e. With 0 there is no such array.

    shift: added to the inputs of the residual before they are rounded, and taken off afterwards: unsigned codes then
    suit what is hardly below zero.
    """

    rank: int | None = None
    residual: Coding = field(default_factory=_int4)
    smooth: float = 0
    shift: float = 0

    name = "svdquant"
    of_channels = frozenset({"down", "smooth"})

    def __post_init__(self) -> None:
        if self.rank is not None and (type(self.rank) is not int or self.rank < 1):
            raise InputError(f"svdquant.rank is {self.rank!r}, expected a positive number, or null")
        if isinstance(self.smooth, bool) or not isinstance(self.smooth, int | float) or not 0 <= self.smooth <= 1:
            raise InputError(f"svdquant.smooth is {self.smooth!r}, expected a number from 0 to 1")
        if type(self.residual).to_basis is not Coding.to_basis or isinstance(self.residual, SVDQuant):
            raise InputError(f"svdquant.residual is {self.residual.name}, expected a format like int4 or nvfp4")

    def unfit(self, shape: tuple[int, ...]) -> str | None:
        if (self.rank or 1) > min(shape):
            return f"rank {self.rank}, expected at most {min(shape)}"
        return self.residual.unfit(shape)

    def encode(self, weight: mx.array) -> dict[str, mx.array]:
        beside: dict[str, mx.array] = {}
        smoothed = weight
        if self.smooth:
            beside["smooth"] = _smooth(weight, self.smooth).astype(_FACTORS)
            smoothed = weight * beside["smooth"].astype(mx.float32)
        up, down = factors(smoothed, self._rank(weight))
        if self.smooth:
            down = down / beside["smooth"].astype(mx.float32)[:, None]
        beside |= {"up": up.astype(_FACTORS), "down": down.astype(_FACTORS)}
        rest = weight - _low_rank(beside)
        if self.smooth:
            rest = rest * beside["smooth"].astype(mx.float32)
        return self.residual.encode(rest) | beside

    def decode(self, arrays: Arrays) -> mx.array:
        rest = self.residual.decode(arrays)
        if "smooth" in arrays:
            rest = rest / arrays["smooth"].astype(mx.float32)
        return rest + _low_rank(arrays)

    def product(self, arrays: Arrays, x: mx.array, inputs: Inputs | None = None) -> mx.array:
        """Inputs are divided by `smooth` and rounded for the residual; the factors multiply them as they are."""
        low = (x @ arrays["down"].astype(mx.float32)) @ arrays["up"].astype(mx.float32).T
        smooth = arrays["smooth"].astype(mx.float32) if "smooth" in arrays else 1
        if inputs is None or not self.shift:
            return low + self.residual.product(arrays, x / smooth, inputs)
        return low + self.residual.product(arrays, inputs.rounded((x + self.shift) / smooth) - self.shift / smooth)

    def unshifted(self, arrays: Arrays, bias: mx.array) -> mx.array:
        """The bias (outputs,), fp32, of a linear whose `bias` takes off what `shift` adds to the residual's product."""
        smooth = arrays["smooth"].astype(mx.float32) if "smooth" in arrays else mx.ones(arrays["down"].shape[0])
        return bias.astype(mx.float32) + self.residual.product(arrays, self.shift / smooth)

    def neighbours(self, arrays: Arrays) -> Neighbours | None:
        """Those of the residual."""
        found = self.residual.neighbours(arrays)
        if found is None or "smooth" not in arrays:
            return found
        smooth = arrays["smooth"].astype(mx.float32)
        return found._replace(below=found.below / smooth, above=found.above / smooth)

    def _rank(self, weight: mx.array) -> int:
        return self.rank or max(1, min(MOST_RANK, min(weight.shape) // SHARE))


def factors(weight: mx.array, rank: int) -> tuple[mx.array, mx.array]:
    """`up` (outputs, rank) and `down` (channels, rank), fp32: nearly the best whose product `up @ down.T` is `weight`.

    Each has the square roots of the singular values. What is not finite counts as zero.
    """
    finite = mx.where(mx.isfinite(weight), weight, 0)
    largest = mx.abs(finite).max()
    largest = mx.where(largest == 0, 1, largest)
    scaled = finite / largest
    outputs, channels = weight.shape
    width = min(rank + _BESIDE, outputs, channels)
    start = np.random.default_rng(0).standard_normal((channels, width), dtype=np.float32)
    basis = _orthonormal(scaled @ mx.array(start))
    for _ in range(_ITERATIONS):
        basis = _orthonormal(scaled @ _orthonormal(scaled.T @ basis))
    across, triangle = mx.linalg.qr(scaled.T @ basis, stream=mx.cpu)
    left, sizes, right = mx.linalg.svd(triangle.T, stream=mx.cpu)
    roots = mx.sqrt(sizes[:rank]) * mx.sqrt(largest)
    return (basis @ left[:, :rank]) * roots, (across @ right[:rank].T) * roots


def _orthonormal(columns: mx.array) -> mx.array:
    return mx.linalg.qr(columns, stream=mx.cpu)[0]


def _low_rank(arrays: Arrays) -> mx.array:
    """The product of the factors, (outputs, channels), fp32."""
    return arrays["up"].astype(mx.float32) @ arrays["down"].astype(mx.float32).T


def _smooth(weight: mx.array, exponent: float) -> mx.array:
    """The vector (channels,), fp32, at least 1; 1 for a channel that is zero or not finite."""
    channels = mx.abs(weight).max(axis=0)
    usable = mx.isfinite(channels) & (channels > 0)
    largest = mx.where(usable, channels, 0).max()
    return mx.where(usable, largest / mx.where(usable, channels, 1), 1) ** exponent
