"""How large the residual streams are at each depth, and what each branch must add: closed forms, nothing is run.

A stream has a few *massive* channels and, BULK_RATIO times smaller, the *bulk* that carries the content (Sun et al.,
arXiv:2402.17762, found this in language models). Both grow by the same factor r a block. LayerNorm removes the size, so
the weights of a branch in block i set its size: it adds (r - 1) * 16 * r^i to the first massive channel, and the
sum telescopes to 16 * r^n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from precision_lab.synthetic.shape import INPUT_AMAX
from precision_lab.synthetic.tensors import Array, Source

BULK_RATIO = 1 / 40
"""Standard deviation of a bulk channel relative to the first massive channel."""

ATTENTION_SHARE = 0.25
"""Part of a block's growth that its attention adds; the MLP adds the rest."""

GATE_EXPONENT = 0.29
"""Gates grow as this power of the stream, up to 66 before the last of 60 blocks, ungated outputs as the rest."""

LAST_GATE_DIVISOR = 2.0
"""The last MLP reaches its size with a smaller gate and a larger output, which published recipes scale down most."""


@dataclass(frozen=True)
class Branch:
    """Attention or MLP of one block: sizes in the first massive channel.

    entering: of the stream where the branch reads it. added: the branch's contribution, gate included. gate: its gate.
    growth: the contribution of the whole block, relative to the stream: r - 1.
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
        """Size of the stream's bulk where the branch reads it, on the scale of the branch's output."""
        return BULK_RATIO * self.entering / self.gate


@dataclass(frozen=True)
class Growth:
    """The course of both residual streams through `num_layers` blocks, growing by `factor` a block."""

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

    index: (k,) positions. amplitude: (k,) signed sizes relative to the first: 1, -0.9, 0.81, ...; the signs alternate,
    as the published range -51 M .. +57 M suggests, and the mean that LayerNorm subtracts stays small.
    width: of the stream.
    """

    index: np.ndarray
    amplitude: Array
    width: int

    @classmethod
    def draw(cls, source: Source, stream: str, width: int) -> Channels:
        """2 channels up to width 1919, then one in 768 (4 of 3072)."""
        count = max(2, round(width / 768))
        index = source.channels(f"massive channels of {stream}", width, count)
        return cls(index, ((-0.9) ** np.arange(count)).astype(np.float32), width)

    @property
    def rms(self) -> float:
        """Root mean square over all channels, relative to the first massive channel: what LayerNorm divides by."""
        bulk = (self.width - len(self.index)) * BULK_RATIO**2
        return math.sqrt((float(np.sum(np.square(self.amplitude))) + bulk) / self.width)

    def vector(self, massive: float, bulk: float) -> Array:
        """(width,) with |amplitude| * `massive` in the massive channels and `bulk` in the others."""
        values = np.full(self.width, bulk, dtype=np.float32)
        values[self.index] = np.abs(self.amplitude) * np.float32(massive)
        return values

    def signed(self, massive: float) -> Array:
        """(width,) with amplitude * `massive` in the massive channels and zero in the others."""
        values = np.zeros(self.width, dtype=np.float32)
        values[self.index] = self.amplitude * np.float32(massive)
        return values

    def normalised(self, massive: float, bulk: float) -> Array:
        """(width,) factors that take a stream behind LayerNorm to +-`massive` and to the standard deviation `bulk`."""
        values = np.full(self.width, bulk * self.rms / BULK_RATIO, dtype=np.float32)
        values[self.index] = np.float32(massive * self.rms) / np.abs(self.amplitude)
        return values
