"""Watches the residual streams of a generation for values that are not finite, in every run.

A residual stream that holds a NaN or an infinity keeps it through all later adds, so the output of the last block shows
what any add did. A technique that replaces a block may hide it, by clipping the end of a stream for example; the output
of such a block and the adds inside it are then watched too. `precision_lab.lab.origin` finds the add itself.

Cost: a few arrays of each forward pass, which are reduced together at the end of their step, or when they take 128 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx

from precision_lab.instrument.arrays import described, real, to_numpy
from precision_lab.instrument.scope import current_scope
from precision_lab.instrument.sites import Site, Wrapper, observable
from precision_lab.instrument.tap import Call, ports, tapped
from precision_lab.numerics.formats import FORMATS
from precision_lab.numerics.nonfinite import all_finite, count_nonfinite
from precision_lab.probes.range_kernel import PendingRanges, pending_ranges, read_ranges
from precision_lab.probes.ranges import DEFAULT_FORMATS

_MOST_BYTES = 128 << 20
_FORMATS = tuple(FORMATS[name] for name in DEFAULT_FORMATS)
"""Those of the range catalogue, so that no other kernel is compiled."""

_LAUNCHED = 16
"""Arrays whose counts are launched together on a GPU; see `probes.range_kernel`."""


class Carried(NamedTuple):
    """An array of a residual stream, or once it has been released what the table says of it.

    order: number of the arrays that were recorded before it in the generation.
    """

    site: Site
    port: str
    stream: str
    labels: Mapping[str, Any]
    order: int
    array: mx.array | None
    about: Mapping[str, Any] | None = None


class StreamWatch:
    """The watch of one generation.

    first: a row with the position of the first array that was not finite and its counts; None if all were finite.
    """

    def __init__(self) -> None:
        self.first: dict[str, Any] | None = None
        self._clock: Callable[[], int] = int
        self._held: list[Carried] = []
        self._nbytes = 0
        self._launched: list[tuple[PendingRanges, list[Carried]]] = []
        self._on_gpu = mx.default_device().type == mx.DeviceType.gpu

    @contextmanager
    def watching(self, sites: Sequence[Site], clock: Callable[[], int]) -> Iterator[None]:
        """Context manager in which the streams are watched. sites: all of the model; clock: gives `Carried.order`."""
        self._clock = clock
        with tapped(carriers(sites), self._on_call):
            yield
            self.read()

    def read(self) -> None:
        """Reduces the arrays that are held, and releases them. To be called when they have been evaluated."""
        if self._on_gpu:
            self._launch()
            self._read_launched()
        else:
            self._read_held()

    def _on_call(self, call: Call) -> None:
        if self.first is not None:  # what follows was computed from it
            return
        labels, order = current_scope(), self._clock()
        for port in ports(call, ["out"]):
            self._held.append(Carried(call.site, port.name, port.stream, labels, order, port.array))
            self._nbytes += port.array.nbytes
        if self._on_gpu and len(self._held) >= _LAUNCHED:
            self._launch()
        if self._nbytes > _MOST_BYTES:
            self.read()

    def _read_held(self) -> None:
        held, self._held, self._nbytes = self._held, [], 0
        if self.first is not None or not held:
            return
        held = _evaluated(held)
        arrays = [to_numpy(real(seen.array)) for seen in held if seen.array is not None]
        if all_finite(arrays):
            return
        counts = [count_nonfinite(array) for array in arrays]
        seen, count = next((s, c) for s, c in zip(held, counts, strict=True) if any(c))
        self.first = _row(seen, *count)

    def _launch(self) -> None:
        """Starts the reductions of the held arrays on their device, after which only the reductions refer to them."""
        held, self._held = [seen for seen in self._held if _is_float(seen.array)], []
        if not held:
            return
        pending = pending_ranges([real(seen.array) for seen in held if seen.array is not None], _FORMATS)
        try:
            mx.async_eval(*pending.rows)
        except (ValueError, RuntimeError):  # part of a trace, see `_evaluated`
            return
        self._launched.append((pending, [seen._replace(array=None, about=_about(seen)) for seen in held]))

    def _read_launched(self) -> None:
        launched, self._launched, self._nbytes = self._launched, [], 0
        if self.first is not None or not launched:
            return
        columns = read_ranges([pending for pending, _ in launched], _FORMATS)
        bad = (columns["num_nan"] + columns["num_inf"]).nonzero()[0]
        if len(bad):
            seen = [carried for _, held in launched for carried in held][bad[0]]
            self.first = _row(seen, int(columns["num_nan"][bad[0]]), int(columns["num_inf"][bad[0]]))


def carriers(sites: Sequence[Site]) -> list[Site]:
    """The modules whose outputs are watched.

    In the component with residual streams: the last block, the blocks that a technique replaced, and the residual adds
    inside those. In other components: all blocks.
    """
    # a path is tested before it is looked up, because a model has thousands
    numbered = [site for site in sites if site.path.rpartition(".")[2].isdecimal()]
    blocks = [site for site in numbered if site.layout.is_block(site.component, site.path)]
    replaced = {(site.component, site.block) for site in blocks if isinstance(site.module, Wrapper)}
    chosen = {site for site in blocks if (site.component, site.block) in replaced or not _is_followed(site)}
    if replaced:
        chosen |= {
            site
            for site in observable(sites)
            if (site.component, site.block) in replaced and site.layout.is_add(site.component, site.path)
        }
    return [site for site in sites if site in chosen]


def _is_followed(block: Site) -> bool:
    """Whether a later block continues the residual streams of this one."""
    layout = block.layout
    return bool(layout.streams) and block.component == layout.default and block.path != layout.last_block


def position_row(site: Site, port: str, stream: str, labels: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a table that name an array of a call at `site`, in the scope `labels`."""
    moment = {name: labels.get(name) for name in ("branch", "step", "sigma")}
    address = {"component": site.component, "site": site.path, "port": port}
    return {**moment, **address, "stream": stream, "block": site.block}


def _row(seen: Carried, num_nan: int, num_inf: int) -> dict[str, Any]:
    place = position_row(seen.site, seen.port, seen.stream, seen.labels)
    return {**place, "order": seen.order, **_about(seen), "num_nan": num_nan, "num_inf": num_inf}


def _about(seen: Carried) -> Mapping[str, Any]:
    return seen.about or (described(real(seen.array)) if seen.array is not None else {})


def _is_float(x: mx.array | None) -> bool:
    return x is not None and mx.issubdtype(x.dtype, mx.inexact)


def _evaluated(held: Sequence[Carried]) -> list[Carried]:
    """Those that have values. Arrays of a function that MLX traces have none (`mx.compile` in a technique)."""
    try:
        mx.eval([seen.array for seen in held])
    except (ValueError, RuntimeError):
        return [seen for seen in held if has_value(seen.array)]
    return list(held)


def has_value(x: mx.array | None) -> bool:
    """Whether x can be evaluated; an array of a function that MLX traces cannot."""
    try:
        mx.eval(x)
    except (ValueError, RuntimeError):
        return False
    return True
