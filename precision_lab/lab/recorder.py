"""From calls of modules to rows of tables: the position of each array, and observers that measure it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeGuard, cast, runtime_checkable

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.instrument.arrays import described, real
from precision_lab.instrument.observation import Columns, Observation, Position, position_columns, rows_of
from precision_lab.instrument.scope import current_scope
from precision_lab.instrument.sites import Site, select, walk
from precision_lab.instrument.tap import Call, Port, ports, tapped
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

CALL = "call"
"""The port of observers that want an output together with the inputs of its call."""

# an evaluation takes about a millisecond to start and await: with few arrays a group, a small model takes twice as long
_GROUP = 2048
_GROUP_BYTES = 128 << 20
# where nothing but statistics outlives the evaluation: a quarter as many, and as many fewer graphs of kernels on CUDA
_PASSING_BYTES = 512 << 20
# sets of statistics that wait to be read, some kilobytes each
_MOST_PENDING = 1024


def position_of(site: Site, port: Port, order: int) -> Position:
    """The position of an array that a module of `site` takes or gives, within the current scope."""
    labels = current_scope()
    moment = labels.get("branch"), labels.get("step"), labels.get("sigma")
    return Position(*moment, site.component, site.path, port.name, port.stream, site.block, order)


class Observer(Protocol):
    """Something that measures arrays at the sites of its patterns."""

    @property
    def sites(self) -> Sequence[str]: ...

    @property
    def ports(self) -> Sequence[str]: ...

    def observe(self, batch: Sequence[Observation]) -> None: ...


@runtime_checkable
class LazyObserver(Observer, Protocol):
    """An observer that may need arrays only until their evaluation begins."""

    @property
    def is_lazy(self) -> bool:
        """Whether it is given them by `prepare`, and not by `observe`."""

    def prepare(self, batch: Sequence[Observation]) -> Sequence[mx.array]:
        """Takes note of a batch that is not evaluated; what it returns is evaluated with it."""


def _is_lazy(observer: Observer) -> TypeGuard[LazyObserver]:
    return isinstance(observer, LazyObserver) and observer.is_lazy


@contextmanager
def observing(components: Mapping[str, nn.Module], observers: Sequence[Observer]) -> Iterator[None]:
    """Every array at an observer's sites and ports reaches it by the end of the block, in order.

    Arrays are evaluated in groups, one group while the one before is measured: one by one, waiting would take longer
    than measuring, and all at the end they would stay in memory together. Lazy observers are given a group before it is
    evaluated, and nothing waits for them. Raises InputError for a pattern that names no site.
    """
    sites = walk(components)
    interested: dict[Site, _Interest] = defaultdict(_Interest)
    for observer in observers:
        for site in select(observer.sites, sites):
            interested[site].add(observer)
    group = _Group(observers)
    launched: _Group | None = None
    seen = 0

    def launch(following: _Group) -> None:
        """Starts evaluating the current group, and meanwhile measures the one before."""
        nonlocal group, launched
        group.launch()
        if launched is not None:
            launched.deliver()
        group, launched = following, group

    def on_call(call: Call) -> None:
        nonlocal seen
        site = call.site
        interest = interested[site]
        inputs = tuple(real(port.array) for port in ports(call, ["in"])) if interest.calls else ()
        for kind, wanting in interest.wanting.items():
            for port in ports(call, [kind]):
                position = position_of(site, port, seen)
                seen += 1
                given = inputs if kind == "out" else ()
                group.add(Observation(position, real(port.array), given, site.module), wanting)
        if group.is_full:
            launch(_Group(observers))

    with tapped(interested, on_call):
        yield
        launch(_Group(observers))
        launch(_Group(observers))


class _Interest:
    """What observers want of the calls at one site."""

    def __init__(self) -> None:
        self.wanting: dict[str, list[Observer]] = {}
        """The observers of each kind of port, "in" before "out"; an output is what those of calls get, too."""
        self.calls = False
        """Whether an observer wants the inputs of a call with its output."""

    def add(self, observer: Observer) -> None:
        self.calls |= CALL in observer.ports
        for kind in {"out" if kind == CALL else kind for kind in observer.ports}:
            self.wanting.setdefault(kind, []).append(observer)
        self.wanting = dict(sorted(self.wanting.items()))


class _Group:
    """Observations that are evaluated together, and who is to have which."""

    def __init__(self, observers: Sequence[Observer]):
        self._number = 0
        self._nbytes = 0
        self._most_bytes = _PASSING_BYTES if all(_is_lazy(observer) for observer in observers) else _GROUP_BYTES
        self._batches: dict[int, tuple[Observer, list[Observation]]] = {id(o): (o, []) for o in observers}

    @property
    def is_full(self) -> bool:
        return self._number >= _GROUP or self._nbytes > self._most_bytes

    def add(self, observation: Observation, wanting: Sequence[Observer]) -> None:
        self._number += 1
        self._nbytes += observation.array.nbytes
        for array in observation.inputs:
            self._nbytes += array.nbytes
        for observer in wanting:
            self._batches[id(observer)][1].append(observation)

    def launch(self) -> None:
        """Starts the evaluation; what only lazy observers wanted is held no longer."""
        statistics: list[mx.array] = []
        kept: dict[int, Observation] = {}
        for observer, batch in self._batches.values():
            if batch and _is_lazy(observer):
                statistics += observer.prepare(batch)
                batch.clear()
            kept.update((id(seen), seen) for seen in batch)
        mx.async_eval(statistics, [array for seen in kept.values() for array in (seen.array, *seen.inputs)])

    def deliver(self) -> None:
        for observer, batch in self._batches.values():
            if batch:
                observer.observe(batch)


class ProbeRecorder:
    """Rows of activations: the scalars of one probe."""

    table = ACTIVATIONS

    def __init__(self, probe: Probe | CallProbe):
        self.sites, self.ports = probe.sites, probe.ports
        self._lazy = probe if isinstance(probe, LazyProbe) and probe.is_lazy else None
        self._measure = _measurement(probe)
        self._places: dict[str, list[Any]] = defaultdict(list)  # and not positions: so many objects keep the GC busy
        # of a probe that gives columns, those of each batch; of others, the scalars of each array
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
    """The same with Python numbers in place of MLX arrays."""
    lazy = [value for scalars in measured for value in scalars.values() if isinstance(value, mx.array)]
    if not lazy:
        return measured
    mx.eval(lazy)
    return [{k: cast(float, v.item()) if isinstance(v, mx.array) else v for k, v in s.items()} for s in measured]


def _columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A column for each key; NaN in rows that lack it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, math.nan) for row in rows] for name in names}


def recorder_of(probe: AnyProbe) -> ProbeRecorder | Recorder:
    """What collects a probe's rows in one generation."""
    return probe.recorder() if isinstance(probe, StreamProbe) else ProbeRecorder(probe)


def declared(probes: Iterable[AnyProbe]) -> dict[str, list[Column]]:
    """The columns that probes declare, by table; of several with one name the first."""
    columns: dict[str, dict[str, Column]] = {}
    for probe in probes:
        table = recorder_of(probe).table
        for column in probe.adds if isinstance(probe, Declaring) else ():
            columns.setdefault(table, {}).setdefault(column.name, column)
    return {table: list(named.values()) for table, named in columns.items()}


def _measurement(
    probe: Probe | CallProbe,
) -> Callable[[Sequence[Observation]], Sequence[Mapping[str, Scalar]] | Columns]:
    """How a probe of any of these kinds measures observations."""
    if CALL in probe.ports:
        whole = cast(CallProbe, probe)
        return lambda batch: [whole.measure(seen.inputs, seen.array) for seen in batch]
    if isinstance(probe, BatchProbe):
        return lambda batch: probe.measure_each([seen.array for seen in batch])
    single = cast(Probe, probe)
    return lambda batch: [single.measure(seen.array) for seen in batch]
