"""The observation loop: it groups the arrays of calls, evaluates each group, and passes it to its observers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, Protocol, TypeGuard, runtime_checkable

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.arrays import real
from precision_lab.instrument.observation import Observation, Position
from precision_lab.instrument.scope import current_scope
from precision_lab.instrument.sites import Site, select, walk
from precision_lab.instrument.tap import Call, Port, ports, tapped

CALL = "call"
"""The port of observers that use an output together with the inputs of its call."""

# starting an evaluation and waiting for it takes about a millisecond; small groups double the time of a small model
_GROUP = 2048
_GROUP_BYTES = 128 << 20
# limit if only statistics outlive the evaluation: a quarter as many groups, and so as many fewer CUDA graphs
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
    """An observer that can work on arrays before they are evaluated, without keeping them."""

    @property
    def is_lazy(self) -> bool:
        """Whether `prepare` receives the arrays instead of `observe`."""

    def prepare(self, batch: Sequence[Observation]) -> Sequence[mx.array]:
        """Receives a batch before its evaluation. The returned arrays are evaluated with the batch."""


class Seen(NamedTuple):
    """An input or output of a call, without a position yet. inputs: those of the call, if an observer uses them."""

    site: Site
    port: Port
    inputs: tuple[mx.array, ...]


class Loop:
    """Passes the arrays of calls to observers in order of execution.

    Arrays are evaluated in groups, and each group is evaluated while the previous one is measured. Evaluated singly,
    arrays would take longer to wait for than to measure; evaluated at the end, they would all stay in memory. Lazy
    observers receive a group before it is evaluated, and nothing waits for them.
    """

    def __init__(self, watches: Sequence[tuple[Observer, Sequence[Site]]]):
        """watches: pairs of an observer and the sites that it observes."""
        self._interest: dict[Site, _Interest] = defaultdict(_Interest)
        for observer, sites in watches:
            for site in sites:
                self._interest[site].add(observer)
        self._observers = [observer for observer, _ in watches]
        self._group = _Group(self._observers)
        self._launched: _Group | None = None
        self.count = 0
        """Number of arrays observed so far."""

    @property
    def sites(self) -> list[Site]:
        """The sites that at least one observer observes."""
        return list(self._interest)

    @property
    def waiting(self) -> Sequence[Observation]:
        """The arrays of the current group, whose evaluation has not started."""
        return self._group.seen

    def on_call(self, call: Call) -> None:
        """Takes the arrays of a call that at least one observer uses."""
        for seen in self.wanted(call):
            self.take(seen)

    def wanted(self, call: Call) -> Iterator[Seen]:
        """The arrays of a call that at least one observer uses."""
        interest = self._interest[call.site]
        inputs = tuple(real(port.array) for port in ports(call, ["in"])) if interest.calls else ()
        for kind in interest.wanting:
            for port in ports(call, [kind]):
                yield Seen(call.site, port, inputs if kind == "out" else ())

    def take(self, seen: Seen) -> None:
        """Assigns a position to an array and adds it to the current group."""
        site, port, inputs = seen
        observation = Observation(position_of(site, port, self.count), real(port.array), inputs, site.module)
        self.count += 1
        self._group.add(observation, self._interest[site].wanting[port.name.partition(".")[0]])
        if self._group.is_full:
            self._launch()

    def finish(self) -> None:
        """Returns when all arrays observed so far have reached their observers."""
        self._launch()
        self._launch()

    def _launch(self) -> None:
        """Starts the evaluation of the current group, then measures the previous group."""
        self._group.launch()
        if self._launched is not None:
            self._launched.deliver()
        self._group, self._launched = _Group(self._observers), self._group


class Watching(Protocol):
    """Something that follows a whole generation beside the observers; see `precision_lab.lab.watch`."""

    def watching(self, sites: Sequence[Site], clock: Callable[[], int]) -> AbstractContextManager[None]:
        """Context manager of the generation. clock: returns the number of the next observed array."""


@contextmanager
def observing(
    components: Mapping[str, nn.Module], observers: Sequence[Observer], watch: Watching | None = None
) -> Iterator[None]:
    """Context manager that passes the arrays at each observer's sites and ports to it, in order of execution.

    All of them have arrived when the block ends. Raises InputError for a pattern that matches no site.
    """
    sites = walk(components)
    loop = Loop([(observer, select(observer.sites, sites)) for observer in observers])
    # the watch first, so that an array that both see has the same number for both
    with watch.watching(sites, lambda: loop.count) if watch else nullcontext(), tapped(loop.sites, loop.on_call):
        yield
        loop.finish()


def position_of(site: Site, port: Port, order: int) -> Position:
    """The position, in the current scope, of an input or output of the module at `site`."""
    labels = current_scope()
    moment = labels.get("branch"), labels.get("step"), labels.get("sigma")
    return Position(*moment, site.component, site.path, port.name, port.stream, site.block, order)


def _is_lazy(observer: Observer) -> TypeGuard[LazyObserver]:
    return isinstance(observer, LazyObserver) and observer.is_lazy


class _Interest:
    """The arrays that observers use from the calls at one site."""

    def __init__(self) -> None:
        self.wanting: dict[str, list[Observer]] = {}
        """The observers of each kind of port, "in" before "out". Observers of calls are listed under "out"."""
        self.calls = False
        """Whether an observer uses the inputs of a call together with its output."""

    def add(self, observer: Observer) -> None:
        self.calls |= CALL in observer.ports
        for kind in {"out" if kind == CALL else kind for kind in observer.ports}:
            self.wanting.setdefault(kind, []).append(observer)
        self.wanting = dict(sorted(self.wanting.items()))


class _Group:
    """Observations that are evaluated together, grouped by observer."""

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
        """Starts the evaluation, and releases the arrays that only lazy observers use."""
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
