"""What the modules of any MLX model compute inside a block, as a table: `precision_lab.capture`.

with precision_lab.capture(model, sites="layers.*.mlp") as seen:
    model(x)
seen.table()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, ParamSpec, TypeVar

import mlx.core as mx
import mlx.nn as nn
import pandas as pd

from precision_lab.errors import InputError
from precision_lab.instrument.arrays import real
from precision_lab.instrument.observation import Observation
from precision_lab.instrument.sites import Site, select, walk
from precision_lab.instrument.tap import Call, Port, ports, tapped
from precision_lab.lab.frames import frames_of
from precision_lab.lab.recorder import CALL, position_of, recorder_of
from precision_lab.probes.base import ACTIVATIONS, AnyProbe
from precision_lab.probes.ranges import RangeCatalogue
from precision_lab.record.glob import ROOT
from precision_lab.record.layout import Layout

P = ParamSpec("P")
R = TypeVar("R")

COMPONENT = "model"
EVERYTHING = f"{{{ROOT},**}}"

# evaluated and measured together, so that no more than this waits in memory
_GROUP = 512
_GROUP_BYTES = 128 << 20

_LEADING = ["order", "site", "port", "call", "block"]
# of a denoising loop; left out where no scope states them
_MOMENT = ["branch", "step", "sigma"]
# what MLX says of an array that has no value: during a trace, and after it
_OF_A_TRACE = ("during function transformations", "without a primitive")


@contextmanager
def capture(
    model: nn.Module, sites: str | Iterable[str] | None = None, probes: Sequence[AnyProbe] | None = None
) -> Iterator[Capture]:
    """Measures what the modules of `model` compute while the block runs; they are left as they were.

    sites: patterns of modules (`layers.*.mlp`, `**.attn.*`, `.` for the model itself); by default those of the probes.
    probes: what to measure there; by default the range catalogue of the outputs, at every module.

    Outputs are bit for bit what they are without, in eager execution. A function that is compiled with `mx.compile`
    must be given to `Capture.compile`. A module that stands at two addresses is one site, at the first. Raises
    InputError for a pattern that names no module, at the end of a block in which no selected module was called, and
    where a module is called in a function that MLX traces.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"capture was given a {type(model).__name__}: expected an mlx.nn.Module")
    patterns = None if sites is None else [sites] if isinstance(sites, str) else list(sites)
    if probes is None:
        probes = [RangeCatalogue(patterns or [EVERYTHING])]
    # not in `walk`: techniques replace modules in what holds them, and nothing holds the model itself
    every = [*walk({COMPONENT: model}), Site(COMPONENT, ROOT, model, Layout.of([COMPONENT]))]
    watches = [_Watch(probe, select(probe.sites if patterns is None else patterns, every)) for probe in probes]
    capturing = Capture([site for site in every if any(site in watch.sites for watch in watches)], watches)
    with tapped(capturing.sites, capturing._on_call):
        try:
            yield capturing
            capturing._flush()
        finally:
            capturing._ended = True
    if not capturing._count:
        raise InputError(
            f"Nothing was captured: none of {len(capturing.sites)} selected modules was called in the block. A "
            f"function that was compiled before calls the modules as they were then; {_COMPILE}"
        )


class Capture:
    """What has been seen so far: during the block, and after it all there was.

    sites: those that are observed, in order of definition, the model itself last.
    """

    def __init__(self, sites: Sequence[Site], watches: Sequence[_Watch]):
        self.sites = sites
        self._watches = watches
        self._group: list[Observation] = []
        self._nbytes = 0
        self._count = 0
        self._traced: list[_Seen] | None = None
        self._ended = False

    def table(self, name: str = ACTIVATIONS) -> pd.DataFrame:
        """One row an array, in order of execution: order, site, port, call, block, dtype, shape, numel, then scalars.

        call counts the calls of a site from 0. The scalars of the range catalogue are defined in
        `precision_lab.numerics.statistics.summarize`. name: another table, of a probe that has one to itself.
        """
        self._flush()
        tables = frames_of([watch.recorder for watch in self._watches])
        if name not in tables:
            raise InputError(f"No probe of this capture writes a table {name!r}: there is {', '.join(sorted(tables))}")
        rows = tables[name] if len(tables[name]) else pd.DataFrame(columns=[*_LEADING, "component", "stream"])
        rows["call"] = rows.groupby(["site", "port"])["order"].rank(method="dense").astype(int) - 1
        unsaid = [column for column in _MOMENT if column in rows and rows[column].isna().all()]
        rows = rows.drop(columns=["component", "stream", *unsaid]).astype({"block": "Int64"})
        return rows[[*_LEADING, *rows.columns.drop(_LEADING)]]

    def of(self, pattern: str) -> pd.DataFrame:
        """The rows of `table()` at the sites that `pattern` names. Raises InputError if it names none of them."""
        paths = [site.path for site in select(pattern, self.sites)]
        rows = self.table()
        return rows[rows["site"].isin(paths)].reset_index(drop=True)

    @property
    def unseen(self) -> list[str]:
        """The selected sites that have not been called, such as modules that only a compiled function still calls."""
        rows = self.table()
        return [site.path for site in self.sites if site.path not in set(rows["site"])]

    def compile(self, function: Callable[P, R], **options: Any) -> Callable[P, R]:
        """`function` compiled, to be called in the block: `mx.compile(function, **options)` with what is seen recorded.

        Values leave a compiled function only as its outputs, so the observed arrays are returned beside those of
        `function`: they stay in memory together until the call is evaluated. MLX fuses no operations across an observed
        array, so that outputs may differ from those of `mx.compile(function)` by rounding.
        """
        by_path = {site.path: site for site in self.sites}

        def observed(*args: P.args, **kwargs: P.kwargs) -> Any:
            outside, self._traced = self._traced, []
            try:
                return function(*args, **kwargs), [seen.without_site() for seen in self._traced]
            finally:
                self._traced = outside

        compiled = mx.compile(observed, **options)

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if self._ended:
                raise InputError("This function was compiled to be observed in a capture that has ended: compile anew")
            outputs, arrays = compiled(*args, **kwargs)
            for path, *seen in arrays:
                self._take(_Seen(by_path[path], *seen))
            return outputs

        return call

    def _on_call(self, call: Call) -> None:
        watching = [watch for watch in self._watches if call.site in watch.sites]
        kinds = sorted({kind for watch in watching for kind in watch.kinds})  # "in" before "out"
        whole = any(watch.calls for watch in watching)
        inputs = [real(port.array) for port in ports(call, ["in"])] if whole else []
        for port in ports(call, kinds):
            given = [] if port.name.startswith("in") else inputs
            self._take(_Seen(call.site, port.name, port.stream, real(port.array), given))

    def _take(self, seen: _Seen) -> None:
        if self._traced is not None:
            self._traced.append(seen)
            return
        position = position_of(seen.site, Port(seen.port, seen.stream, seen.array), self._count)
        observation = Observation(position, seen.array, tuple(seen.inputs), seen.site.module)
        if not self._group:
            _evaluate([observation])  # says at once if this is a trace
        self._count += 1
        self._group.append(observation)
        self._nbytes += sum(array.nbytes for array in (seen.array, *seen.inputs))
        if len(self._group) >= _GROUP or self._nbytes > _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        group, self._group, self._nbytes = self._group, [], 0
        if not group:
            return
        _evaluate(group)
        for watch in self._watches:
            if batch := [seen for seen in group if watch.wants(seen)]:
                watch.recorder.observe(batch)


class _Seen(NamedTuple):
    """An array that entered or left a module, before it has a position; without the site, a tree that MLX returns."""

    site: Site
    port: str
    stream: str
    array: mx.array
    inputs: list[mx.array]

    def without_site(self) -> list[Any]:
        return [self.site.path, *self[1:]]


class _Watch:
    """What one probe wants, and what it has measured."""

    def __init__(self, probe: AnyProbe, sites: Iterable[Site]):
        self.recorder = recorder_of(probe)
        self.sites = frozenset(sites)
        self.calls = CALL in probe.ports
        self.kinds = {"out" if kind == CALL else kind for kind in probe.ports}
        self._paths = {site.path for site in self.sites}

    def wants(self, seen: Observation) -> bool:
        return seen.position.site in self._paths and seen.position.port.partition(".")[0] in self.kinds


_COMPILE = (
    "compile it in the block with `seen.compile(function)`, or call `mx.disable_compile()` to run everything eagerly"
)


def _evaluate(group: Sequence[Observation]) -> None:
    """Evaluates; raises InputError if MLX refuses since an array has no value, being part of a trace."""
    try:
        mx.eval([array for seen in group for array in (seen.array, *seen.inputs)])
    except (ValueError, RuntimeError) as error:
        if not any(words in str(error) for words in _OF_A_TRACE):
            raise
        if len(group) > 1:
            for seen in group:  # one by one, to name the first
                _evaluate([seen])
        raise InputError(
            f"Site {group[0].position.site!r} was called in a function that MLX traces (mx.compile, mx.vmap), where "
            f"arrays have no values; {_COMPILE}"
        ) from error
