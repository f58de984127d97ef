"""Blocks of a model read from disk when they are called and dropped afterwards: a model larger than memory.

An array that `mx.load` gives reads its tensor when it is evaluated, and keeps the values as long as the array lives. So
no module holds one: a `Stored` replaces each parameter, and code that asks the module for `weight` gets an array
that nothing else keeps. A streamed block evaluates its result before it lets its arrays go, while those that it uses
are read for the block after it; so two blocks are in memory. Nothing is computed differently, every module keeps its
address, and those inside a block their functions (`class_of` gives the class that they derive from).

Weights that are asked for outside of a call (a technique quantises them, a probe compares with them) are read on
demand, and stay in memory where they are kept: a technique that makes weights of its own has them resident.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError

Read = Callable[[], Mapping[str, mx.array]]
"""Gives all tensors of a component by the names of its parameters, not yet evaluated and new at every call."""


def check(inflate: float) -> None:
    """Raises InputError for a setting that needs all weights at once."""
    if inflate != 1:
        raise InputError(f"model.stream=true with model.inflate={inflate:g}: inflating takes all weights, expected 1")


def page(
    model: nn.Module,
    blocks: str,
    read: Read,
    fit: Callable[[mx.array], mx.array],
    used: Callable[[Iterable[str]], None] | None = None,
) -> None:
    """Makes the list of modules `model[blocks]` read its parameters from `read` when they are called.

    fit: converts a stored tensor to the parameter, as `weights.cast` does. used: called with the names of the
    parameters that a block has used and released. The loaded and checked parameters of the modules are released too;
    `parameters()` lists only those that stay in memory.
    """
    shelf = Shelf(read, fit, used)
    paths = [f"{blocks}.{index}." for index in range(len(model[blocks]))]
    for index, path in enumerate(paths):
        for name, module in model[blocks][index].named_modules():
            prefix = f"{path}{name}." if name else path
            parameters = [key for key, value in module.items() if isinstance(value, mx.array) and key[0] != "_"]
            if parameters:
                for key in parameters:
                    dict.__setitem__(module, key, Stored(shelf, prefix + key))
                kind: Any = type(module)
                module.__class__ = _on_demand(kind)
        following = paths[index + 1] if index + 1 < len(paths) else None
        model[blocks][index] = PagedBlock(model[blocks][index], shelf, path, following)


class Shelf:
    """The tensors of a component on disk, and those of one block and the next in memory."""

    def __init__(
        self, read: Read, fit: Callable[[mx.array], mx.array], used: Callable[[Iterable[str]], None] | None = None
    ):
        self._read, self._fit, self._used = read, fit, used
        self._unread: dict[str, mx.array] = {}
        """Arrays of the last reading of the headers. An array that is taken has no other holder."""
        self._names: frozenset[str] = frozenset()
        self._held: dict[str, mx.array] = {}
        """Parameters that the current block has asked for; between calls, the last one asked for."""
        self._ahead: dict[str, mx.array] = {}
        """As stored and not yet asked for, for the block that is called and the one that follows: being read."""
        self._usual: tuple[str, ...] = ()
        """Names that the last block asked for, as paths inside it."""
        self._calling = False

    def parameter(self, name: str) -> mx.array:
        """A parameter by its path, not yet evaluated; the same array as long as one block is called."""
        if name not in self._held:
            if not self._calling:
                self._held.clear()
            self._held[name] = self._fit(self._ahead.pop(name) if name in self._ahead else self._take(name))
        return self._held[name]

    @contextmanager
    def calling(self, path: str, following: str | None) -> Iterator[None]:
        """The block at `path` is called inside; what it asked for is dropped at the end, on an exception all else too.

        A call may compute, so what the block called last asked for is read for this one and for the one at `following`
        from the start.
        """
        self._held, self._calling = {}, True
        try:
            self._read_ahead(path, following)
            yield
            if self._used is not None:
                self._used(list(self._held))
        except BaseException:
            self._ahead = {}
            raise
        finally:
            self._held, self._calling = {}, False

    def asked(self, path: str, following: str | None) -> None:
        """The block at `path` has asked for all that it uses: the same and no more is for the one that follows."""
        self._usual = tuple(name.removeprefix(path) for name in self._held if name.startswith(path))
        wanted = set() if following is None else {following + name for name in self._usual}
        self._ahead = {name: array for name, array in self._ahead.items() if name in wanted}
        self._read_ahead(following)

    def _read_ahead(self, *blocks: str | None) -> None:
        """Starts to read the usual parameters of the blocks at these paths, without waiting.

        By MLX itself: a thread that only filled the page cache would leave it the copy, 0.4 s for 680 MB on an EPYC.
        """
        for name in (path + name for path in blocks if path is not None for name in self._usual):
            if name not in self._ahead and name in self._names:  # a checkpoint may keep what it quantises elsewhere
                self._ahead[name] = self._take(name)
        mx.async_eval(list(self._ahead.values()))

    def _take(self, name: str) -> mx.array:
        if name not in self._unread:
            with mx.stream(_reading()):
                self._unread = dict(self._read())
            self._names = frozenset(self._unread)
        return self._unread.pop(name)


class Stored:
    """Stands in a module where a parameter would: a name on a shelf."""

    def __init__(self, shelf: Shelf, name: str):
        self.shelf, self.name = shelf, name

    def __repr__(self) -> str:
        return f"Stored({self.name})"


class _OnDemand(nn.Module):
    """Gives an array for every `Stored`, however it is asked for; only iteration shows what is really held."""

    def __getitem__(self, key: str) -> Any:
        return _resolved(super().__getitem__(key))

    def get(self, key: str, default: Any = None) -> Any:
        return _resolved(super().get(key, default))

    def pop(self, key: str, *default: Any) -> Any:
        return _resolved(super().pop(key, *default))


def _resolved(value: Any) -> Any:
    return value.shelf.parameter(value.name) if isinstance(value, Stored) else value


class PagedBlock(nn.Module):
    """A block with the children of another, and its function, whose result is evaluated.

    Its class is another: code that compiles or fuses whole blocks must not take it for a block that keeps its weights.
    """

    def __init__(self, block: nn.Module, shelf: Shelf, path: str, following: str | None):
        super().__init__()
        self.__dict__.update(block.__dict__)
        dict.update(self, block)
        self._call = type(block).__call__
        self._shelf, self._path, self._following = shelf, path, following

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._shelf.calling(self._path, self._following):
            out = self._call(self, *args, **kwargs)
            self._shelf.asked(self._path, self._following)
            mx.eval(out)
        return out


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class of a module, that of the resident model where its parameters are on disk."""
    kind = type(module)
    return kind.__bases__[1] if issubclass(kind, _OnDemand) else kind


def recast(module: nn.Module, kind: Any) -> nn.Module:
    """A copy of a module that is of class `kind`, and shares what it holds; parameters on disk stay there."""
    recast_module = copy(module)
    recast_module.__class__ = _on_demand(kind) if isinstance(module, _OnDemand) else kind
    return recast_module


@cache
def _on_demand(kind: Any) -> Any:
    """The class `kind` for modules that hold `Stored`."""
    return type(kind.__name__, (_OnDemand, kind), {"__module__": kind.__module__})


@cache
def _reading() -> mx.Stream:
    """A stream of its own, or reading the next block would wait in line with the operations of this one."""
    return mx.new_stream(mx.Device(mx.DeviceType.cpu))
