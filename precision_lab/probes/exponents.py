"""Exponent histograms: how many values of an array lie in each binade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from precision_lab.instrument.arrays import dtype_name, to_numpy
from precision_lab.instrument.observation import Observation
from precision_lab.numerics.statistics import exponent_histogram

TABLE = "exponents"


@dataclass(frozen=True)
class Exponents:
    """The table `exponents`: a row for each binade 2^`exponent` <= |x| < 2^(`exponent` + 1) with values in it.

    `count` is how many finite values are there, exactly; zeros, infinities and NaN have no binade and no row.
    """

    sites: Sequence[str] = ("transformer_blocks.*",)
    ports: Sequence[str] = ("out",)

    def recorder(self) -> ExponentRecorder:
        return ExponentRecorder(self.sites, self.ports)


class ExponentRecorder:
    """Counts each array as it comes."""

    table = TABLE

    def __init__(self, sites: Sequence[str], ports: Sequence[str]):
        self.sites, self.ports = sites, ports
        self.rows: list[dict[str, Any]] = []

    def observe(self, batch: Sequence[Observation]) -> None:
        for position, x, *_ in batch:
            place = {**position._asdict(), "dtype": dtype_name(x), "numel": x.size}
            exponents, counts = exponent_histogram(to_numpy(x))
            self.rows += [
                {**place, "exponent": exponent, "count": count}
                for exponent, count in zip(exponents.tolist(), counts.tolist(), strict=True)
                if count
            ]
