"""Exchanges arrays at the ports of modules: a callback may replace each array that enters or leaves a module.

It is how a pass is forced onto values that come from elsewhere: what a module computes follows from what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.instrument.swap import swapped

Exchange = Callable[[Site, str, mx.array], mx.array]
"""Called with the site, the port and the array that the model has there; returns the array to go on with."""


@contextmanager
def exchanged(components: Mapping[str, nn.Module], sites: Iterable[Site], exchange: Exchange) -> Iterator[None]:
    """Context manager in which the arrays at the ports of `sites` are what `exchange` returns for them.

    Ports are named as by `precision_lab.instrument.tap.ports`. The inputs of a call are exchanged before it.
    """
    with swapped(components, {site: _Exchanging(site, exchange) for site in sites}):
        yield


class _Exchanging(Wrapper):
    """Calls the module with exchanged inputs; returns its output, exchanged."""

    def __init__(self, site: Site, exchange: Exchange):
        super().__init__(site.module)
        self._site, self._exchange = site, exchange

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = self._replaced("in", (args, kwargs))
        return self._replaced("out", self.inner(*args, **kwargs))

    def _replaced(self, kind: str, value: Any) -> Any:
        count = sum(1 for _ in _arrays(value))
        names = iter([kind] if count == 1 else [f"{kind}.{index}" for index in range(count)])
        return mapped(value, lambda array: self._exchange(self._site, next(names), array))


def mapped(value: Any, change: Callable[[mx.array], mx.array]) -> Any:
    """`value` with every array in its tuples, lists and mappings replaced by `change` of it, in order."""
    if isinstance(value, mx.array):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _arrays(value: Any) -> Iterator[mx.array]:
    if isinstance(value, mx.array):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _arrays(item)
