"""What the biases of a checkpoint look like, collected while they are written."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class BiasRow(NamedTuple):
    """One kind of bias over all blocks: how many tensors, then the range of their median and largest magnitudes."""

    kind: str
    tensors: int
    median: tuple[float, float]
    largest: tuple[float, float]


@dataclass
class BiasStatistics:
    """Median and largest magnitude of every bias; the median is the bulk's, the largest a massive channel's."""

    _kinds: defaultdict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, values: np.ndarray) -> None:
        """Counts the tensor `name` if it is a bias. Biases are stored in one piece."""
        if not name.endswith(".bias"):
            return
        magnitudes = np.abs(values.astype(np.float32))
        assert math.isfinite(magnitudes.max()), name
        kind = re.sub(r"\.\d+(?=\.(?!weight|bias))", ".*", name, count=1)
        self._kinds[kind].append((float(np.median(magnitudes)), float(magnitudes.max())))

    def rows(self, prefix: str) -> Iterator[BiasRow]:
        """The kinds of bias whose name starts with `prefix`, in order of writing."""
        for kind, pairs in self._kinds.items():
            if kind.startswith(prefix):
                medians, largest = zip(*pairs, strict=True)
                yield BiasRow(kind, len(pairs), (min(medians), max(medians)), (min(largest), max(largest)))
