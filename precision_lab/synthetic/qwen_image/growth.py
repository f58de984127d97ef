"""Computes the size of the residual streams at each depth and of the branch outputs in closed form, without a run.

A stream has a few *massive* channels and the *bulk*, smaller by BULK_RATIO, which carries the content. Sun et al.,
arXiv:2402.17762, observed this in language models. Both grow by the same factor r a block. LayerNorm removes the size
of the stream, so the size of a branch's output is fixed by its weights: block i adds (r - 1) * 16 * r^i to the first
massive channel, and the sum telescopes to 16 * r^n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from precision_lab.synthetic.tensors import Array, Source

INPUT_AMAX = 16.0
"""Published largest magnitude after `img_in`; both streams start here."""

BULK_RATIO = 1 / 40
"""Standard deviation of a bulk channel relative to the first massive channel."""

ATTENTION_SHARE = 0.25
"""Share of a block's growth that its attention adds; the MLP adds the rest."""

GATE_EXPONENT = 0.29
"""Gates grow as this power of the stream, up to 66 before the last of 60 blocks; ungated outputs take the rest."""

LAST_GATE_DIVISOR = 2.0
"""The last MLP has a smaller gate and a larger output by this factor; published recipes scale it down most."""


@dataclass(frozen=True)
class Branch:
    """Attention or MLP of one block, with its sizes in the first massive channel.

    entering: size of the stream at the input of the branch. added: size of what the branch adds, after its gate.
    gate: size of the gate. growth: what the whole block adds, relative to the stream, r - 1.
    """

    entering: float
    added: float
    gate: float
    growth: float

    @property
    def output(self) -> float:
        """Size of the branch's output before the gate."""
        return self.added / self.gate

    @property
    def bulk(self) -> float:
        """Size of the stream's bulk at the input of the branch, on the scale of the branch's output."""
        return BULK_RATIO * self.entering / self.gate


@dataclass(frozen=True)
class Growth:
    """Growth of both residual streams by `factor` a block, through `num_layers` blocks."""

    factor: float
    num_layers: int

    def attention(self, block: int) -> Branch:
        stream, growth = INPUT_AMAX * self.factor**block, self.factor - 1
        return Branch(stream, ATTENTION_SHARE * growth * stream, _gate(stream), growth)

    def mlp(self, block: int) -> Branch:
        stream, growth = INPUT_AMAX * self.factor**block, self.factor - 1
        entering = stream * (1 + ATTENTION_SHARE * growth)
        divisor = LAST_GATE_DIVISOR if block == self.num_layers - 1 else 1.0
        return Branch(entering, (1 - ATTENTION_SHARE) * growth * stream, _gate(stream) / divisor, growth)


def _gate(stream: float) -> float:
    return (stream / INPUT_AMAX) ** GATE_EXPONENT


@dataclass(frozen=True)
class Channels:
    """The massive channels of one stream, the same in every block.

    index: positions (k,). amplitude: signed sizes (k,) relative to the first, 1, -0.9, 0.81, ... The signs alternate,
    as the published range -51 M .. +57 M suggests, so that the mean that LayerNorm subtracts stays small. width: number
    of channels of the stream.
    """

    index: np.ndarray
    amplitude: Array
    width: int

    @classmethod
    def draw(cls, source: Source, stream: str, width: int) -> Channels:
        """Draws 2 channels up to a width of 1919, and one in 768 beyond (4 of 3072)."""
        count = max(2, round(width / 768))
        index = source.channels(f"massive channels of {stream}", width, count)
        return cls(index, ((-0.9) ** np.arange(count)).astype(np.float32), width)

    @property
    def rms(self) -> float:
        """Root mean square over all channels, by which LayerNorm divides, relative to the first massive channel."""
        bulk = (self.width - len(self.index)) * BULK_RATIO**2
        return math.sqrt((float(np.sum(np.square(self.amplitude))) + bulk) / self.width)

    def vector(self, massive: float, bulk: float) -> Array:
        """A vector (width,) with |amplitude| * `massive` in the massive channels and `bulk` in the others."""
        values = np.full(self.width, bulk, dtype=np.float32)
        values[self.index] = np.abs(self.amplitude) * np.float32(massive)
        return values

    def signed(self, massive: float) -> Array:
        """A vector (width,) with amplitude * `massive` in the massive channels and zero in the others."""
        values = np.zeros(self.width, dtype=np.float32)
        values[self.index] = self.amplitude * np.float32(massive)
        return values

    def normalised(self, massive: float, bulk: float) -> Array:
        """Factors (width,) that scale a normalised stream to +-`massive` and to the standard deviation `bulk`."""
        values = np.full(self.width, bulk * self.rms / BULK_RATIO, dtype=np.float32)
        values[self.index] = np.float32(massive * self.rms) / np.abs(self.amplitude)
        return values
