"""Generates the timestep embedding and the linears that compute adaLN modulation from it, mostly by their bias."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from precision_lab.synthetic.tensors import Array, Source, Tensor, whole

SILU_RMS = 0.6
"""Root mean square of silu(x) for x ~ N(0, 1), the input of the modulation linears."""

FREQUENCIES = 128
"""Number of frequencies of the timestep features, from 1000 down to 0.1 rad; all cosines come before the sines."""

CLOCK = 0
"""The channel of the timestep embedding that increases steadily with the timestep; all gates follow it."""

_CLOCK_GAIN = 2.0
_CLOCK_TURN = 1.5
"""The clock is silu(gain * sin(turn * t)) for t in 0 .. 1."""


def _silu(x: float) -> float:
    return x / (1 + math.exp(-x))


_CLOCK_RANGE = _silu(_silu(_CLOCK_GAIN * math.sin(_CLOCK_TURN)))
"""The value that the modulation linears read from the clock at t = 1; at t = 0 it is zero."""


def timestep_embedding(width: int, source: Source) -> Iterator[Tensor]:
    """Yields the tensors of the MLP that maps timestep features to a vector of unit size.

    The vector varies smoothly over the schedule, because the MLP uses the features that turn by about 5 rad over it.
    Lower frequencies are constant. Higher frequencies reach 1000 rad and would make the model sensitive to every
    rounding of the timestep.
    """
    name = "time_text_embed.timestep_embedder"
    first, second = f"{name}.linear_1", f"{name}.linear_2"
    turns = 1000 * 1e4 ** (-np.arange(FREQUENCIES) / FREQUENCIES)
    band = np.tile(turns / 5 / (1 + np.square(turns / 5)), 2)
    std = (np.square(band).sum() / 2) ** -0.5 * band

    def first_weight() -> Array:
        drawn = source.normal(f"{first}.weight", (width, len(std))) * std.astype(np.float32)
        drawn[CLOCK] = 0
        drawn[CLOCK, FREQUENCIES + np.abs(turns - _CLOCK_TURN).argmin()] = _CLOCK_GAIN
        return drawn

    def second_weight() -> Array:
        drawn = source.normal(f"{second}.weight", (width, width), 1 / SILU_RMS * width**-0.5)
        drawn[CLOCK] = 0
        drawn[CLOCK, CLOCK] = 1
        return drawn

    def bias(linear: str, std: float) -> Array:
        drawn = source.normal(f"{linear}.bias", (width,), std)
        drawn[CLOCK] = 0
        return drawn

    yield whole(f"{first}.weight", (width, len(std)), first_weight)
    yield whole(f"{first}.bias", (width,), partial(bias, first, 0.3))
    yield whole(f"{second}.weight", (width, width), second_weight)
    yield whole(f"{second}.bias", (width,), partial(bias, second, 0.1))


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
            rows[:, CLOCK] = np.float32(2 * chunk.clock / _CLOCK_RANGE) * chunk.size
        return drawn

    def bias() -> Array:
        drawn = source.normal(f"{name}.bias", (len(chunks) * width,))
        for rows, chunk in zip(np.split(drawn, len(chunks)), chunks, strict=True):
            rows *= np.float32(chunk.spread) * chunk.size
            rows += chunk.mean - np.float32(chunk.clock) * chunk.size
        return drawn

    yield whole(f"{name}.weight", shape, weight)
    yield whole(f"{name}.bias", shape[:1], bias)
