"""Massive channels: the channels with the largest values, their size relative to the median, and their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from precision_lab.instrument.arrays import to_numpy
from precision_lab.probes.base import Scalar
from precision_lab.record.columns import Column, count


@dataclass(frozen=True)
class MassiveChannels:
    """Measures arrays (..., tokens, channels). Arrays of fewer axes, or without a finite token, have no scalars.

    A channel is massive if its amax is at least `ratio` times that of the median channel. (Sun et al.,
    arXiv:2402.17762, call a single activation massive if it exceeds 100 and 1,000 times the median; the amax of a
    channel stands out less.)

    - `massive_channels`: the number of massive channels;
    - `top_channel`, `second_channel`: the indices of the two channels with the largest amax;
    - `top_ratio`: the amax of the largest channel over that of the median channel;
    - `top_token_pct`: percent of tokens whose largest value is in the largest channel.
    """

    sites: Sequence[str]
    ports: Sequence[str] = ("out",)
    ratio: float = 20.0

    @property
    def adds(self) -> Sequence[Column]:
        return (
            count("massive_channels", f"channels whose amax is at least {self.ratio:g} times the median channel's"),
            count("top_channel", "index of the channel with the largest amax"),
            count("second_channel", "index of the channel with the second largest amax"),
            Column("top_ratio", meaning="amax of the largest channel over that of the median channel"),
            Column("top_token_pct", unit="%", meaning="tokens whose largest value is in the largest channel"),
        )

    def measure(self, x: mx.array) -> Mapping[str, Scalar]:
        values = np.abs(to_numpy(x).astype(np.float32))
        if values.ndim < 2 or values.shape[-1] < 3 or not values.size:
            return {}
        values = values.reshape(-1, values.shape[-1])
        if not np.isfinite(values).all():
            values = values[np.isfinite(values).all(axis=1)]
        if not len(values):
            return {}
        amax = values.max(axis=0).astype(np.float64)
        top, second = (int(i) for i in np.argsort(-amax, kind="stable")[:2])
        median = float(np.median(amax))
        return {
            "massive_channels": int(np.count_nonzero(amax >= self.ratio * median)) if median else 0,
            "top_channel": top,
            "second_channel": second,
            "top_ratio": float(amax[top]) / median if median else float("nan"),
            "top_token_pct": 100.0 * float(np.mean(values.argmax(axis=1) == top)),
        }
