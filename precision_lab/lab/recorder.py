"""Observers that collect the rows of a probe in one generation."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import mlx.core as mx
import numpy as np

from precision_lab.instrument.arrays import described
from precision_lab.instrument.observation import Columns, Observation, position_columns, rows_of
from precision_lab.lab.observing import CALL
from precision_lab.probes.base import (
    ACTIVATIONS,
    AnyProbe,
    BatchProbe,
    CallProbe,
    Declaring,
    LazyProbe,
    Pending,
    Probe,
    Recorder,
    Scalar,
    StreamProbe,
)
from precision_lab.record.columns import Column

# maximum of unread sets of statistics, a few kilobytes each
_MOST_PENDING = 1024


class ProbeRecorder:
    """Collects rows of activations with the scalars of one probe."""

    table = ACTIVATIONS

    def __init__(self, probe: Probe | CallProbe):
        self.sites, self.ports = probe.sites, probe.ports
        self._lazy = probe if isinstance(probe, LazyProbe) and probe.is_lazy else None
        self._measure = _measurement(probe)
        self._places: dict[str, list[Any]] = defaultdict(list)  # columns, since many Position objects would slow the GC
        # for a probe that returns columns, those of each batch; for others, the scalars of each array
        self._batches: list[Columns] = []
        self._scalars: list[Mapping[str, Scalar]] = []
        self._pending: list[Pending] = []

    @property
    def is_lazy(self) -> bool:
        return self._lazy is not None

    def prepare(self, batch: Sequence[Observation]) -> Sequence[mx.array]:
        assert self._lazy is not None
        if len(self._pending) == _MOST_PENDING:
            self._read()
        self._pending.append(self._lazy.prepare([seen.array for seen in batch]))
        self._take_places(batch)
        return self._pending[-1].rows

    def observe(self, batch: Sequence[Observation]) -> None:
        if self.is_lazy:
            mx.async_eval(self.prepare(batch))
            return
        measured = self._measure(batch)
        if isinstance(measured, Mapping):
            self._batches.append(measured)
        else:
            self._scalars += _evaluated(measured)
        self._take_places(batch)

    def _take_places(self, batch: Sequence[Observation]) -> None:
        places = position_columns([seen.position for seen in batch])
        for name, column in {**places, **_columns_of([described(seen.array) for seen in batch])}.items():
            self._places[name] += column

    def _read(self) -> None:
        if self._lazy is not None and self._pending:
            self._batches.append(self._lazy.columns(self._pending))
            self._pending = []

    @property
    def columns(self) -> Columns:
        self._read()
        if self._batches:
            names = self._batches[0]
            scalars: Columns = {name: np.concatenate([batch[name] for batch in self._batches]) for name in names}
        else:
            scalars = _columns_of(self._scalars)
        return {**self._places, **scalars}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return rows_of(self.columns)


def _evaluated(measured: Sequence[Mapping[str, Scalar]]) -> Sequence[Mapping[str, Scalar]]:
    """`measured` with MLX arrays replaced by Python numbers."""
    lazy = [value for scalars in measured for value in scalars.values() if isinstance(value, mx.array)]
    if not lazy:
        return measured
    mx.eval(lazy)
    return [{k: cast(float, v.item()) if isinstance(v, mx.array) else v for k, v in s.items()} for s in measured]


def _columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A table by columns with a column for each key; NaN where a row lacks it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, math.nan) for row in rows] for name in names}


def recorder_of(probe: AnyProbe) -> ProbeRecorder | Recorder:
    """A new recorder of a probe's rows, for one generation."""
    return probe.recorder() if isinstance(probe, StreamProbe) else ProbeRecorder(probe)


def declared(probes: Iterable[AnyProbe]) -> dict[str, list[Column]]:
    """The columns that probes declare, by table; the first of several columns with the same name."""
    columns: dict[str, dict[str, Column]] = {}
    for probe in probes:
        table = recorder_of(probe).table
        for column in probe.adds if isinstance(probe, Declaring) else ():
            columns.setdefault(table, {}).setdefault(column.name, column)
    return {table: list(named.values()) for table, named in columns.items()}


def _measurement(
    probe: Probe | CallProbe,
) -> Callable[[Sequence[Observation]], Sequence[Mapping[str, Scalar]] | Columns]:
    """A function that measures a batch of observations with `probe`."""
    if CALL in probe.ports:
        whole = cast(CallProbe, probe)
        return lambda batch: [whole.measure(seen.inputs, seen.array) for seen in batch]
    if isinstance(probe, BatchProbe):
        return lambda batch: probe.measure_each([seen.array for seen in batch])
    single = cast(Probe, probe)
    return lambda batch: [single.measure(seen.array) for seen in batch]
