"""`precision_lab.capture`: a table of what the modules of any MLX model compute within a context.

with precision_lab.capture(model, sites="layers.*.mlp") as seen:
    model(x)
seen.table()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import mlx.core as mx
import mlx.nn as nn
import pandas as pd

from precision_lab.errors import InputError
from precision_lab.instrument.observation import Observation
from precision_lab.instrument.sites import Site, select, walk
from precision_lab.instrument.tap import Call, Port, tapped
from precision_lab.lab.frames import frames_of
from precision_lab.lab.observing import Loop, Seen
from precision_lab.lab.recorder import recorder_of
from precision_lab.probes.base import ACTIVATIONS, AnyProbe, Recorder
from precision_lab.probes.ranges import RangeCatalogue
from precision_lab.record.glob import ROOT
from precision_lab.record.layout import Layout

P = ParamSpec("P")
R = TypeVar("R")

COMPONENT = "model"
EVERYTHING = f"{{{ROOT},**}}"

_LEADING = ["order", "site", "port", "call", "block"]
# set by a denoising loop; omitted if no scope sets them
_MOMENT = ["branch", "step", "sigma"]
# from MLX's error messages for an array without a value, during a trace and after it
_OF_A_TRACE = ("during function transformations", "without a primitive")


@contextmanager
def capture(
    model: nn.Module, sites: str | Iterable[str] | None = None, probes: Sequence[AnyProbe] | None = None
) -> Iterator[Capture]:
    """Context manager that measures what the modules of `model` compute in the block, and then restores the modules.

    sites: patterns of modules (`layers.*.mlp`, `**.attn.*`, `.` for the model itself); by default those of the probes.
    probes: the measurements; by default the range catalogue of the outputs, at every module.

    In eager execution, outputs are identical bit for bit to those without a capture. To observe a compiled function,
    compile it with `Capture.compile` instead of `mx.compile`. A module with two addresses is one site, at the first.
    Raises InputError for a pattern that matches no module, at the end of a block in which no selected module was
    called, and if a module is called in a function that MLX traces.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"capture was given a {type(model).__name__}: expected an mlx.nn.Module")
    patterns = None if sites is None else [sites] if isinstance(sites, str) else list(sites)
    if probes is None:
        probes = [RangeCatalogue(patterns or [EVERYTHING])]
    # `walk` excludes the model itself: techniques replace modules in their containers, and the model has none
    every = [*walk({COMPONENT: model}), Site(COMPONENT, ROOT, model, Layout.of([COMPONENT]))]
    watches = [(recorder_of(probe), select(probe.sites if patterns is None else patterns, every)) for probe in probes]
    watched = {site for _, sites_of_one in watches for site in sites_of_one}
    capturing = Capture([site for site in every if site in watched], watches)
    with tapped(capturing.sites, capturing._on_call):
        try:
            yield capturing
            capturing._flush()
        finally:
            capturing._ended = True
    if not capturing._loop.count:
        raise InputError(
            f"Nothing was captured: none of {len(capturing.sites)} selected modules was called in the block. A "
            f"function that was compiled before calls the modules as they were then; {_COMPILE}"
        )


class Capture:
    """The measurements of a capture; during the block, those made so far.

    sites: the observed sites in order of definition, with the model itself last.
    """

    def __init__(self, sites: Sequence[Site], watches: Sequence[tuple[Recorder, Sequence[Site]]]):
        self.sites = sites
        self._recorders = [recorder for recorder, _ in watches]
        self._loop = Loop(watches)
        self._traced: list[Seen] | None = None
        self._ended = False

    def table(self, name: str = ACTIVATIONS) -> pd.DataFrame:
        """One row per array in order of execution: order, site, port, call, block, dtype, shape, numel, then scalars.

        call numbers the calls of a site from 0. `precision_lab.numerics.statistics.summarize` defines the scalars of
        the range catalogue. name: another table, for a probe that writes its own. Raises InputError for an unknown
        name.
        """
        self._flush()
        tables = frames_of(self._recorders)
        if name not in tables:
            raise InputError(
                f"No probe of this capture writes a table {name!r}. Available: {', '.join(sorted(tables))}"
            )
        rows = tables[name] if len(tables[name]) else pd.DataFrame(columns=[*_LEADING, "component", "stream"])
        rows["call"] = rows.groupby(["site", "port"])["order"].rank(method="dense").astype(int) - 1
        unsaid = [column for column in _MOMENT if column in rows and rows[column].isna().all()]
        rows = rows.drop(columns=["component", "stream", *unsaid]).astype({"block": "Int64"})
        return rows[[*_LEADING, *rows.columns.drop(_LEADING)]]

    def of(self, pattern: str) -> pd.DataFrame:
        """The rows of `table()` at the sites that match `pattern`. Raises InputError if no selected site matches."""
        paths = [site.path for site in select(pattern, self.sites)]
        rows = self.table()
        return rows[rows["site"].isin(paths)].reset_index(drop=True)

    @property
    def unseen(self) -> list[str]:
        """The selected sites that have not been called, such as modules called only inside a compiled function."""
        rows = self.table()
        return [site.path for site in self.sites if site.path not in set(rows["site"])]

    def compile(self, function: Callable[P, R], **options: Any) -> Callable[P, R]:
        """Compiles `function` like `mx.compile(function, **options)`, with observation. Call the result in the block.

        Values leave a compiled function only as outputs, so the observed arrays become additional outputs: all of them
        stay in memory until the call is evaluated. MLX fuses no operations across an observed array, so the outputs may
        differ from those of `mx.compile(function)` by rounding.
        """
        by_path = {site.path: site for site in self.sites}

        def observed(*args: P.args, **kwargs: P.kwargs) -> Any:
            outside, self._traced = self._traced, []
            try:
                return function(*args, **kwargs), [_as_outputs(seen) for seen in self._traced]
            finally:
                self._traced = outside

        compiled = mx.compile(observed, **options)

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if self._ended:
                raise InputError("This function was compiled for a capture that has ended: compile it again")
            outputs, arrays = compiled(*args, **kwargs)
            for path, name, stream, array, inputs in arrays:
                self._take(Seen(by_path[path], Port(name, stream, array), tuple(inputs)))
            return outputs

        return call

    def _on_call(self, call: Call) -> None:
        for seen in self._loop.wanted(call):
            self._take(seen)

    def _take(self, seen: Seen) -> None:
        if self._traced is not None:
            self._traced.append(seen)
            return
        if not self._loop.waiting:  # reports a trace at once, not at the end of a group
            with _traces_refused([seen]):
                mx.eval(seen.port.array, seen.inputs)
        with _traces_refused(self._waiting(seen)):
            self._loop.take(seen)
            if not self._loop.waiting:  # a group was launched; a second in flight would take memory from the caller
                self._loop.finish()

    def _flush(self) -> None:
        with _traces_refused(self._waiting()):
            self._loop.finish()

    def _waiting(self, *more: Seen) -> Iterator[Seen]:
        """The arrays to be evaluated next, in order. Consumed only if the evaluation fails."""
        for site, observation in ((_site_of(self.sites, seen), seen) for seen in list(self._loop.waiting)):
            yield Seen(site, Port("", "", observation.array), observation.inputs)
        yield from more


_COMPILE = (
    "compile it in the block with `seen.compile(function)`, or call `mx.disable_compile()` to run everything eagerly"
)


def _as_outputs(seen: Seen) -> list[Any]:
    """Converts `seen` to a tree that a compiled function can return."""
    return [seen.site.path, *seen.port, list(seen.inputs)]


def _site_of(sites: Sequence[Site], observation: Observation) -> Site:
    return next(site for site in sites if site.path == observation.position.site)


@contextmanager
def _traces_refused(waiting: Iterable[Seen]) -> Iterator[None]:
    """Raises InputError, naming the first site, if MLX refuses to evaluate an array because it is part of a trace."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not any(words in str(error) for words in _OF_A_TRACE):
            raise
        traced = next((seen for seen in waiting if _is_traced(seen)), None)
        if traced is None:
            raise
        raise InputError(
            f"Site {traced.site.path!r} was called in a function that MLX traces (mx.compile, mx.vmap), where arrays "
            f"have no values; {_COMPILE}"
        ) from error


def _is_traced(seen: Seen) -> bool:
    try:
        mx.eval(seen.port.array, list(seen.inputs))
    except (ValueError, RuntimeError):
        return True
    return False
