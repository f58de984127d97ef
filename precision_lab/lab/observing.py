"""The one loop of observation: arrays of calls are grouped, evaluated, and handed to the observers that want them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeGuard, runtime_checkable

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.arrays import real
from precision_lab.instrument.observation import Observation, Position
from precision_lab.instrument.scope import current_scope
from precision_lab.instrument.sites import Site, select, walk
from precision_lab.instrument.tap import Call, Port, ports, tapped

CALL = "call"
"""The port of observers that want an output together with the inputs of its call."""

# an evaluation takes about a millisecond to start and await: with few arrays a group, a small model takes twice as long
_GROUP = 2048
_GROUP_BYTES = 128 << 20
# where nothing but statistics outlives the evaluation: a quarter as many, and as many fewer graphs of kernels on CUDA
_PASSING_BYTES = 512 << 20


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
        """Whether `prepare` receives them, and not `observe`."""

    def prepare(self, batch: Sequence[Observation]) -> Sequence[mx.array]:
        """Accepts a batch that is not evaluated. The returned arrays are evaluated with it."""


class Seen(NamedTuple):
    """An array that entered or left a module, before it has a position; inputs: those of its call, where wanted."""

    site: Site
    port: Port
    inputs: tuple[mx.array, ...]


class Loop:
    """Hands the arrays of calls to observers in order of execution.

    Arrays are evaluated in groups, one group while the one before is measured: one by one, waiting would take longer
    than measuring, and all at the end they would stay in memory together. Lazy observers are given a group before it is
    evaluated, and nothing waits for them.
    """

    def __init__(self, watches: Sequence[tuple[Observer, Sequence[Site]]]):
        """watches: each observer with the sites that it watches."""
        self._interest: dict[Site, _Interest] = defaultdict(_Interest)
        for observer, sites in watches:
            for site in sites:
                self._interest[site].add(observer)
        self._observers = [observer for observer, _ in watches]
        self._group = _Group(self._observers)
        self._launched: _Group | None = None
        self.count = 0
        """Number of arrays seen so far."""

    @property
    def sites(self) -> list[Site]:
        """The sites that some observer watches."""
        return list(self._interest)

    @property
    def waiting(self) -> Sequence[Observation]:
        """The current group, which is not evaluated yet."""
        return self._group.seen

    def on_call(self, call: Call) -> None:
        """Takes the arrays of a call that some observer wants: `take` of each of `wanted`, without their tuples."""
        site = call.site
        interest = self._interest[site]
        inputs = tuple(real(port.array) for port in ports(call, ["in"])) if interest.calls else ()
        for kind, observers in interest.wanting.items():
            of_call = inputs if kind == "out" else ()
            for port in ports(call, [kind]):
                self._add(site, port, of_call, observers)
        if self._group.is_full:
            self._launch()

    def wanted(self, call: Call) -> Iterator[Seen]:
        """The arrays of a call that some observer wants."""
        interest = self._interest[call.site]
        inputs = tuple(real(port.array) for port in ports(call, ["in"])) if interest.calls else ()
        for kind in interest.wanting:
            for port in ports(call, [kind]):
                yield Seen(call.site, port, inputs if kind == "out" else ())

    def take(self, seen: Seen) -> None:
        """Gives an array its position, and its place in the current group."""
        site, port, inputs = seen
        self._add(site, port, inputs, self._interest[site].wanting[port.name.partition(".")[0]])
        if self._group.is_full:
            self._launch()

    def _add(self, site: Site, port: Port, inputs: tuple[mx.array, ...], observers: Sequence[Observer]) -> None:
        observation = Observation(position_of(site, port, self.count), real(port.array), inputs, site.module)
        self.count += 1
        self._group.add(observation, observers)

    def finish(self) -> None:
        """Returns when everything seen so far has reached its observers."""
        self._launch()
        self._launch()

    def _launch(self) -> None:
        """Starts evaluating the current group, and meanwhile measures the one before."""
        self._group.launch()
        if self._launched is not None:
            self._launched.deliver()
        self._group, self._launched = _Group(self._observers), self._group


@contextmanager
def observing(components: Mapping[str, nn.Module], observers: Sequence[Observer]) -> Iterator[None]:
    """Every array at an observer's sites and ports reaches it by the end of the block, in order.

    Raises InputError for a pattern that names no site.
    """
    sites = walk(components)
    loop = Loop([(observer, select(observer.sites, sites)) for observer in observers])
    with tapped(loop.sites, loop.on_call):
        yield
        loop.finish()


def position_of(site: Site, port: Port, order: int) -> Position:
    """The position of an array that a module of `site` takes or gives, within the current scope."""
    labels = current_scope()
    moment = labels.get("branch"), labels.get("step"), labels.get("sigma")
    return Position(*moment, site.component, site.path, port.name, port.stream, site.block, order)


def _is_lazy(observer: Observer) -> TypeGuard[LazyObserver]:
    return isinstance(observer, LazyObserver) and observer.is_lazy


class _Interest:
    """The arrays that observers want from the calls at one site."""

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
    """Observations that are evaluated together, by observer."""

    def __init__(self, observers: Sequence[Observer]):
        self.seen: list[Observation] = []
        self._nbytes = 0
        self._most_bytes = _PASSING_BYTES if all(_is_lazy(observer) for observer in observers) else _GROUP_BYTES
        self._batches: dict[int, tuple[Observer, list[Observation]]] = {id(o): (o, []) for o in observers}

    @property
    def is_full(self) -> bool:
        return len(self.seen) >= _GROUP or self._nbytes > self._most_bytes

    def add(self, observation: Observation, wanting: Sequence[Observer]) -> None:
        self.seen.append(observation)
        self._nbytes += observation.array.nbytes
        for array in observation.inputs:
            self._nbytes += array.nbytes
        for observer in wanting:
            self._batches[id(observer)][1].append(observation)

    def launch(self) -> None:
        """Starts the evaluation; what only lazy observers wanted is held no longer."""
        statistics: list[mx.array] = []
        held: dict[int, Observation] = {}
        for observer, batch in self._batches.values():
            if batch and _is_lazy(observer):
                statistics += observer.prepare(batch)
                batch.clear()
            held.update((id(seen), seen) for seen in batch)
        mx.async_eval(statistics, [array for seen in held.values() for array in (seen.array, *seen.inputs)])
        self.seen.clear()

    def deliver(self) -> None:
        for observer, batch in self._batches.values():
            if batch:
                observer.observe(batch)
