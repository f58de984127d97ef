"""From calls of modules to rows of tables: the position of each array, and observers that measure it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.instrument.arrays import real, to_numpy
from precision_lab.instrument.sites import Site, select, walk
from precision_lab.instrument.tap import Call, ports, tapped
from precision_lab.lab.reference import ReferenceReader, ReferenceWriter
from precision_lab.model.scope import current_scope
from precision_lab.numerics.metrics import compare
from precision_lab.probes.base import Probe

# Lazy scalars are evaluated together with what they measure, often enough that neither memory nor the graph grows.
_PENDING_BYTES = 256 << 20
_PENDING_ARRAYS = 32


class Position(NamedTuple):
    """Where and when an array was seen; `order` counts what was seen in one generation."""

    branch: str | None
    step: int | None
    sigma: float | None
    component: str
    site: str
    port: str
    stream: str
    block: int | None
    order: int

    @property
    def key(self) -> str:
        """Names the array within a generation."""
        return f"{self.branch}|{self.step}|{self.component}:{self.site}|{self.port}"


class Observer(Protocol):
    """Something that measures arrays at the sites of its patterns."""

    @property
    def sites(self) -> Sequence[str]: ...

    @property
    def ports(self) -> Sequence[str]: ...

    def observe(self, position: Position, x: mx.array) -> None: ...


@contextmanager
def observing(components: Mapping[str, nn.Module], observers: Sequence[Observer]) -> Iterator[None]:
    """Every array at an observer's sites and ports reaches it inside the block.

    Raises InputError for a pattern that names no site.
    """
    sites = walk(components)
    interested: dict[Site, list[Observer]] = defaultdict(list)
    for observer in observers:
        for site in select(observer.sites, sites):
            interested[site].append(observer)
    seen = 0

    def on_call(call: Call) -> None:
        nonlocal seen
        labels = current_scope()
        kinds = {kind for observer in interested[call.site] for kind in observer.ports}
        for port in ports(call, sorted(kinds)):
            site = call.site
            position = Position(
                branch=labels.get("branch"),
                step=labels.get("step"),
                sigma=labels.get("sigma"),
                component=site.component,
                site=site.path,
                port=port.name,
                stream=port.stream,
                block=site.block,
                order=seen,
            )
            seen += 1
            kind, array = port.name.partition(".")[0], real(port.array)
            for observer in interested[site]:
                if kind in observer.ports:
                    observer.observe(position, array)

    with tapped(interested, on_call):
        yield


class ProbeRecorder:
    """Rows of activations: the scalars of one probe; lazy ones are evaluated in groups, with what they measure."""

    def __init__(self, probe: Probe):
        self.sites, self.ports = probe.sites, probe.ports
        self._probe = probe
        self._rows: list[dict[str, Any]] = []
        self._pending: list[list[mx.array]] = []

    def observe(self, position: Position, x: mx.array) -> None:
        shape = "x".join(map(str, x.shape))
        dtype = str(x.dtype).rpartition(".")[2]
        scalars = self._probe.measure(x)
        self._rows.append({**position._asdict(), "dtype": dtype, "shape": shape, "numel": x.size, **scalars})
        lazy = [value for value in scalars.values() if isinstance(value, mx.array)]
        if lazy:
            self._pending.append([x, *lazy])
            held = sum(measured.nbytes for measured, *_ in self._pending)
            if held > _PENDING_BYTES or len(self._pending) >= _PENDING_ARRAYS:
                self._evaluate()

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far, as Python numbers."""
        self._evaluate()
        return [{k: v.item() if isinstance(v, mx.array) else v for k, v in row.items()} for row in self._rows]

    def _evaluate(self) -> None:
        mx.eval(self._pending)
        self._pending.clear()


def join_rows(recorders: Sequence[ProbeRecorder]) -> list[dict[str, Any]]:
    """Rows of several probes, those of one array made one row."""
    joined: dict[int, dict[str, Any]] = {}
    for recorder in recorders:
        for row in recorder.rows():
            joined.setdefault(row["order"], {}).update(row)
    return [joined[order] for order in sorted(joined)]


class ReferenceRecorder:
    """Stores the arrays that variants are compared with."""

    ports = ("out",)

    def __init__(self, sites: Sequence[str], writer: ReferenceWriter):
        self.sites = sites
        self._writer = writer

    def observe(self, position: Position, x: mx.array) -> None:
        self._writer.put(position.key, to_numpy(x).astype(np.float32))


class DriftRecorder:
    """Rows of drift: free-running error against the stored reference, in float64."""

    ports = ("out",)

    def __init__(self, sites: Sequence[str], reader: ReferenceReader):
        self.sites = sites
        self._reader = reader
        self.rows: list[dict[str, Any]] = []

    def observe(self, position: Position, x: mx.array) -> None:
        reference = self._reader.get(position.key)
        if reference is None:
            return
        row = {key: value for key, value in position._asdict().items() if key != "sigma"}
        self.rows.append({**row, **compare(to_numpy(x), reference).values})
