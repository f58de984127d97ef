"""Observes calls of modules in place: a callback receives their inputs and outputs, and nothing else changes.

Within the context, the class of a tapped module is a subclass of its original class, because `__call__` is looked up on
the class. The identity, parameters and children of the module do not change, so other code sees no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.blame import Place, blame
from precision_lab.instrument.sites import Site

Callback = Callable[["Call"], None]


class Call(NamedTuple):
    """One call of the module at a site, recorded after it returned."""

    site: Site
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


class Port(NamedTuple):
    """One array that enters or leaves a module."""

    name: str
    stream: str
    array: mx.array


@contextmanager
def tapped(sites: Iterable[Site], callback: Callback) -> Iterator[None]:
    """Context manager that calls `callback` after every call of the modules at `sites`, inner modules first.

    An exception that a call raises carries the innermost of these sites (`precision_lab.instrument.blame`).
    """
    undo: list[tuple[nn.Module, type]] = []
    tapped_classes: dict[type, type] = {}
    by_module: dict[int, Site] = {}
    try:
        for site in sites:
            module, original = site.module, type(site.module)
            if original not in tapped_classes:
                tapped_classes[original] = _tapped_class(original, by_module, callback)
            by_module[id(module)] = site
            undo.append((module, original))
            module.__class__ = tapped_classes[original]
        yield
    finally:
        for module, original in reversed(undo):
            module.__class__ = original


def _tapped_class(original: Any, by_module: Mapping[int, Site], callback: Callback) -> Any:
    """A subclass for the modules of one class. The closure, not the instance, holds the callback, so taps can nest."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        site = by_module.get(id(self))
        try:
            output = original.__call__(self, *args, **kwargs)
        except Exception as error:
            if site is not None:
                blame(error, Place.now(site.component, site.path))
            raise
        if site is not None:  # a copy of a tapped module has no site
            callback(Call(site, args, kwargs, output))
        return output

    return type(original.__name__, (original,), {"__call__": call, "__module__": original.__module__})


def ports(call: Call, kinds: Iterable[str]) -> Iterator[Port]:
    """The arrays of a call: `out` or `out.N` for kind "out", `in` or `in.N` for kind "in".

    Arrays are numbered in order through nested tuples, lists and mappings; a single array has no number. A field of a
    named tuple whose name is a stream of the layout assigns that stream to the arrays in it.
    """
    for kind in kinds:
        value = call.output if kind == "out" else (*call.args, *call.kwargs.values())
        if isinstance(value, mx.array):  # nearly every call has one output
            yield Port(kind, call.site.stream, value)
            continue
        leaves = list(_leaves(value, call.site.stream, call.site.layout.streams))
        for index, (stream, array) in enumerate(leaves):
            yield Port(kind if len(leaves) == 1 else f"{kind}.{index}", stream, array)


def _leaves(value: Any, stream: str, streams: Container[str]) -> Iterator[tuple[str, mx.array]]:
    if isinstance(value, mx.array):
        yield stream, value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item, stream, streams)
    elif isinstance(value, tuple | list):
        names = getattr(value, "_fields", None) or [""] * len(value)
        for name, item in zip(names, value, strict=True):
            yield from _leaves(item, name if name in streams else stream, streams)
