"""Runs all probes on all operations in the three formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from precision_lab.device.behaviour.finding import Finding
from precision_lab.device.behaviour.storage import STORAGES, Storage
from precision_lab.device.behaviour.subjects import (
    attend,
    elementwise,
    extremes,
    linear,
    packed,
    public_faults,
    randoms,
    reductions,
    shapes,
)

_SEED = 20_250

FAMILIES: dict[str, Callable[[Storage, np.random.Generator], Iterator[Finding]]] = {
    "products": linear.findings,
    "sums, softmax and norms": reductions.findings,
    "attention": attend.findings,
    "functions": elementwise.findings,
    "ends of the range": extremes.findings,
    "many rows, broadcasts, masks": shapes.findings,
    "quantised products": packed.findings,
    "random numbers": randoms.findings,
}

PARTS = len(FAMILIES) * len(STORAGES)
"""Number of parts that `measure` yields."""


def measure() -> Iterator[tuple[str, list[Finding]]]:
    """Yields the findings of each family and format with a label, as they are measured.

    The inputs are the same in every call. The caller sets the numeric switches: MLX reads them at its first operation.
    """
    for name in FAMILIES:
        for storage in STORAGES:
            yield f"{name}, {storage.name}", family(name, storage)


def family(name: str, storage: Storage) -> list[Finding]:
    """The findings of one family in one format."""
    return list(FAMILIES[name](storage, np.random.default_rng(_SEED)))


def check_public_faults() -> Iterator[dict[str, Any]]:
    """Yields one entry for each fault that was reported in public, as it is checked (see check.py)."""
    for fault in public_faults.faults():
        yield fault.check()
