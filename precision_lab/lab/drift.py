"""Observers that store the reference's arrays, and that measure the distance of a variant from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from precision_lab.errors import InputError
from precision_lab.instrument.arrays import to_numpy
from precision_lab.instrument.blame import Place, blame
from precision_lab.instrument.observation import Observation, Position
from precision_lab.lab.reference import ReferenceReader, ReferenceWriter
from precision_lab.numerics.metrics import compare, kl_divergence
from precision_lab.record.layout import Result


class ReferenceRecorder:
    """Stores the arrays that variants are compared with."""

    ports = ("out",)

    def __init__(self, sites: Sequence[str], writer: ReferenceWriter):
        self.sites = sites
        self._writer = writer

    def observe(self, batch: Sequence[Observation]) -> None:
        for position, x, *_ in batch:
            try:
                self._writer.put(position.key, to_numpy(x).astype(np.float32))
            except InputError as error:
                blame(error, Place(position.component, position.site, position.step, position.branch))
                raise


class DriftRecorder:
    """Collects rows of drift: the free-running error against the stored reference, in float64."""

    ports = ("out",)

    def __init__(self, sites: Sequence[str], reader: ReferenceReader, result: Result):
        self.sites = sites
        self._reader = reader
        self._result = result
        self.rows: list[dict[str, Any]] = []

    def observe(self, batch: Sequence[Observation]) -> None:
        for position, x, *_ in batch:
            reference = self._reader.get(position.key)
            if reference is not None:
                self.rows.append(_row(position, x, reference, self._result))


class ResultRecorder:
    """Compares the last result of a generation with that of a reference that takes other steps.

    last, expected: the numbers of the last step of this generation and of the reference. The row has the step of this
    generation.
    """

    ports = ("out",)

    def __init__(self, result: Result, reader: ReferenceReader, last: int, expected: int):
        self.sites = (result.address,)
        self._result, self._reader = result, reader
        self._last, self._expected = last, expected
        self.rows: list[dict[str, Any]] = []

    def observe(self, batch: Sequence[Observation]) -> None:
        for position, x, *_ in batch:
            if position.step == self._last:
                reference = self._reader.get(position._replace(step=self._expected).key)
                if reference is not None:
                    self.rows.append(_row(position, x, reference, self._result))


def _row(position: Position, x: Any, reference: np.ndarray, result: Result) -> dict[str, Any]:
    row = {key: value for key, value in position._asdict().items() if key != "sigma"}
    return {**row, **error_of(to_numpy(x), reference, position, result)}


def error_of(x: np.ndarray, reference: np.ndarray, position: Position, result: Result) -> dict[str, Any]:
    """The columns of the drift table for one array. Includes `kl` if it is the result and holds logits."""
    error = dict(compare(x, reference).values)
    if result.distribution and (position.component, position.site) == (result.component, result.site):
        error["kl"] = kl_divergence(x, reference)
    return error
