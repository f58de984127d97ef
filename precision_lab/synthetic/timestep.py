"""Generates the timestep embedding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from precision_lab.synthetic.activations import SILU_RMS
from precision_lab.synthetic.tensors import Array, Source, Tensor, whole

FREQUENCIES = 128
"""Number of frequencies of the timestep features, from 1000 down to 0.1 rad; all cosines come before the sines."""

CLOCK = 0
"""The channel of the timestep embedding that increases steadily with the timestep; all gates follow it."""

_CLOCK_GAIN = 2.0
_CLOCK_TURN = 1.5
"""The clock is silu(gain * sin(turn * t)) for t in 0 .. 1."""


def _silu(x: float) -> float:
    return x / (1 + math.exp(-x))


CLOCK_RANGE = _silu(_silu(_CLOCK_GAIN * math.sin(_CLOCK_TURN)))
"""The value that the modulation linears read from the clock at t = 1; at t = 0 it is zero."""


def timestep_embedding(width: int, source: Source, biases: bool) -> Iterator[Tensor]:
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
    if biases:
        yield whole(f"{first}.bias", (width,), partial(bias, first, 0.3))
    yield whole(f"{second}.weight", (width, width), second_weight)
    if biases:
        yield whole(f"{second}.bias", (width,), partial(bias, second, 0.1))
