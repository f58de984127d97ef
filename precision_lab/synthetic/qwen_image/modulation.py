"""Generates the linears that compute adaLN modulation from the timestep embedding, mostly by their bias."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from precision_lab.synthetic.activations import SILU_RMS
from precision_lab.synthetic.tensors import Array, Source, Tensor, whole
from precision_lab.synthetic.timestep import CLOCK, CLOCK_RANGE


@dataclass(frozen=True)
class Modulation:
    """One chunk of the output of a modulation linear.

    mean: its middle (width,) over timesteps, before the spread. size: the reference (width,) for the other fields.
    spread: standard deviation of the bias over channels. own: standard deviation of the part that varies with the
    timestep independently in each channel. clock: distance by which the clock moves all channels below the middle at
    t = 0 and above it at t = 1.
    """

    mean: Array
    size: Array
    spread: float
    own: float
    clock: float = 0.0

    @classmethod
    def shift(cls, width: int) -> Modulation:
        return cls(np.zeros(width, np.float32), np.ones(width, np.float32), spread=0.1, own=0.1)

    @classmethod
    def scale(cls, factor: Array) -> Modulation:
        """A chunk for the scale of adaLN, which multiplies by 1 + scale; factor: the wanted multiplier (width,)."""
        return cls(factor - 1, factor, spread=0.05, own=0.05)

    @classmethod
    def gate(cls, width: int, gate: float) -> Modulation:
        values = np.full(width, gate, np.float32)
        return cls(values, values, spread=0.1, own=0.1, clock=0.2)


def modulation(name: str, chunks: Sequence[Modulation], source: Source) -> Iterator[Tensor]:
    """Yields the tensors of the linear `name` that maps the timestep embedding to all `chunks`, of the same width."""
    width = len(chunks[0].mean)
    shape = (len(chunks) * width, width)
    reading = np.float32(1 / (SILU_RMS * width**0.5))

    def weight() -> Array:
        drawn = source.normal(f"{name}.weight", shape)
        for rows, chunk in zip(np.split(drawn, len(chunks)), chunks, strict=True):
            rows *= (np.float32(chunk.own) * reading * chunk.size)[:, None]
            rows[:, CLOCK] = np.float32(2 * chunk.clock / CLOCK_RANGE) * chunk.size
        return drawn

    def bias() -> Array:
        drawn = source.normal(f"{name}.bias", (len(chunks) * width,))
        for rows, chunk in zip(np.split(drawn, len(chunks)), chunks, strict=True):
            rows *= np.float32(chunk.spread) * chunk.size
            rows += chunk.mean - np.float32(chunk.clock) * chunk.size
        return drawn

    yield whole(f"{name}.weight", shape, weight)
    yield whole(f"{name}.bias", shape[:1], bias)
