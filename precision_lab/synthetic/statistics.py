"""Statistics of the biases of a checkpoint, collected while they are written."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class Magnitudes(NamedTuple):
    """Magnitudes in one bias: the median is that of the bulk, the largest that of a massive channel."""

    median: float
    largest: float


def bias_magnitudes(name: str, values: np.ndarray) -> Magnitudes | None:
    """The magnitudes of the complete tensor `name` if it is a bias, else None."""
    if not name.endswith(".bias"):
        return None
    magnitudes = np.abs(values.astype(np.float32))
    assert math.isfinite(magnitudes.max()), name
    return Magnitudes(float(np.median(magnitudes)), float(magnitudes.max()))


class BiasRow(NamedTuple):
    """One kind of bias over all blocks: the number of tensors and the ranges of their median and largest magnitudes."""

    kind: str
    tensors: int
    median: tuple[float, float]
    largest: tuple[float, float]


@dataclass
class BiasStatistics:
    """The magnitudes of every bias, by kind."""

    _kinds: defaultdict[str, list[Magnitudes]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, magnitudes: Magnitudes) -> None:
        """Adds the magnitudes of the bias `name`."""
        kind = re.sub(r"\.\d+(?=\.(?!weight|bias))", ".*", name, count=1)
        self._kinds[kind].append(magnitudes)

    def rows(self, prefix: str) -> Iterator[BiasRow]:
        """The kinds of bias whose name starts with `prefix`, in the order in which each was first added."""
        for kind, magnitudes in self._kinds.items():
            if kind.startswith(prefix):
                medians, largest = zip(*magnitudes, strict=True)
                yield BiasRow(kind, len(magnitudes), (min(medians), max(medians)), (min(largest), max(largest)))
