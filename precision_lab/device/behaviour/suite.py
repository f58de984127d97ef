"""Runs all probes on all operations in the three formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from precision_lab.device.behaviour.finding import Finding
from precision_lab.device.behaviour.storage import STORAGES, Storage
from precision_lab.device.behaviour.subjects import attend, elementwise, extremes, linear, reductions

_SEED = 20_250

FAMILIES: dict[str, Callable[[Storage, np.random.Generator], Iterator[Finding]]] = {
    "products": linear.findings,
    "sums, softmax and norms": reductions.findings,
    "attention": attend.findings,
    "functions": elementwise.findings,
    "ends of the range": extremes.findings,
}

PARTS = len(FAMILIES) * len(STORAGES)
"""Number of parts that `measure` yields."""


def measure() -> Iterator[tuple[str, list[Finding]]]:
    """Yields the findings of each family and format with a label, as they are measured.

    The inputs are the same in every call. The caller sets the numeric switches: MLX reads them at its first operation.
    """
    for family, findings in FAMILIES.items():
        for storage in STORAGES:
            yield f"{family}, {storage.name}", list(findings(storage, np.random.default_rng(_SEED)))
