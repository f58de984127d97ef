"""Exponent histograms: the number of values of an array in each binade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from precision_lab.instrument.arrays import dtype_name, to_numpy
from precision_lab.instrument.observation import Columns, Observation, Position, position_columns, rows_of
from precision_lab.numerics.statistics import exponent_histogram
from precision_lab.record.columns import Column, count

TABLE = "exponents"


@dataclass(frozen=True)
class Exponents:
    """The table `exponents`: one row for each binade 2^`exponent` <= |x| < 2^(`exponent` + 1) that contains values.

    `count` is the exact number of finite values in it. Zeros, infinities and NaN have no binade and no row.
    """

    sites: Sequence[str]
    ports: Sequence[str] = ("out",)
    adds: ClassVar[Sequence[Column]] = (
        count("exponent", "binade: 2^exponent <= |x| < 2^(exponent + 1)"),
        count("count", "finite values in the binade"),
    )

    def recorder(self) -> ExponentRecorder:
        return ExponentRecorder(self.sites, self.ports)


class ExponentRecorder:
    """Counts each array when it is observed."""

    table = TABLE

    def __init__(self, sites: Sequence[str], ports: Sequence[str]):
        self.sites, self.ports = sites, ports
        self._positions: list[Position] = []
        self._own: dict[str, list[Any]] = {"dtype": [], "numel": [], "exponent": [], "count": []}

    def observe(self, batch: Sequence[Observation]) -> None:
        for position, x, *_ in batch:
            exponents, counts = exponent_histogram(to_numpy(x))
            (occupied,) = np.nonzero(counts)
            self._positions += [position] * len(occupied)
            self._own["dtype"] += [dtype_name(x)] * len(occupied)
            self._own["numel"] += [x.size] * len(occupied)
            self._own["exponent"] += exponents[occupied].tolist()
            self._own["count"] += counts[occupied].tolist()

    @property
    def columns(self) -> Columns:
        return {**position_columns(self._positions), **self._own}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return rows_of(self.columns)
