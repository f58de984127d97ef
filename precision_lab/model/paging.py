"""Paging: reads the blocks of a model from disk when they are called and drops them afterwards.

This runs a model that is larger than memory. An array returned by `mx.load` reads its tensor when it is evaluated and
holds the values for its lifetime. A module of a paged block therefore holds no such array: each parameter is replaced
by a `Stored` placeholder, and reading `module.weight` returns an array that the module does not keep. A paged block
evaluates its result before it releases its arrays. Meanwhile the same parameters of the next block are read, so two
blocks are in memory. The computation is unchanged, every module keeps its address, and the modules inside a block keep
their functions (`class_of` returns their original class).

Weights requested outside a call, by a technique that quantises them or a probe that compares with them, are read on
demand. They stay in memory while the caller holds them, and until a parameter of another block is requested. Weights
that a technique creates are resident.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError

Read = Callable[[], MutableMapping[str, mx.array]]
"""Returns all tensors of a component by parameter name; each call returns new arrays.

They are not yet evaluated, or are read when they are taken from the mapping.
"""

Fit = Callable[[str, mx.array], mx.array]
"""Converts the stored tensor of a name to the parameter."""


def check(inflate: float) -> None:
    """Raises InputError if `inflate` is not 1: inflating needs all weights in memory at once."""
    if inflate != 1:
        raise InputError(f"model.inflate={inflate:g}: incompatible with model.stream=true, expected 1")


def page(
    model: nn.Module,
    blocks: str,
    read: Read,
    fit: Fit,
    used: Callable[[Iterable[str]], None] | None = None,
    soon: Callable[[str], None] = lambda path: None,
) -> None:
    """Pages the list of modules `model[blocks]`: each block reads its parameters with `read` when it is called.

    fit: casts as `casting.cast` does. used: called with the names of the parameters that a block has used, after the
    block. soon: called with the path of a block that is one of the next two, and must not wait. The parameters that the
    modules hold, loaded and checked, are released. `model.parameters()` then lists only what stays in memory.
    """
    reader = TensorReader(read, fit, used, soon)
    paths = [f"{blocks}.{index}." for index in range(len(model[blocks]))]
    for index, path in enumerate(paths):
        for name, module in model[blocks][index].named_modules():
            prefix = f"{path}{name}." if name else path
            parameters = [key for key, value in module.items() if isinstance(value, mx.array) and key[0] != "_"]
            if parameters:
                for key in parameters:
                    dict.__setitem__(module, key, Stored(reader, prefix + key, path))
                kind: Any = type(module)
                module.__class__ = _on_demand(kind)
        following = tuple(paths[index + 1 : index + 3])
        model[blocks][index] = PagedBlock(model[blocks][index], reader, path, following)


class TensorReader:
    """Reads the tensors of a component from disk and holds those of the current block and the next in memory."""

    def __init__(
        self,
        read: Read,
        fit: Fit,
        used: Callable[[Iterable[str]], None] | None = None,
        soon: Callable[[str], None] = lambda path: None,
    ):
        self._read, self._fit, self._used, self._soon = read, fit, used, soon
        self._unread: MutableMapping[str, mx.array] = {}
        """Arrays from the last call of `read`; each is removed when it is used, so that nothing else holds it."""
        self._names: frozenset[str] = frozenset()
        self._requested: dict[str, mx.array] = {}
        """Parameters that the current block has requested; between calls, those of the block of the last request."""
        self._ahead: dict[str, mx.array] = {}
        """Stored tensors being read ahead for the current block and the next, not requested yet."""
        self._usual: tuple[str, ...] = ()
        """Names that the block called last has requested, relative to the block."""
        self._calling = False
        self._block = ""
        """Between calls, the path of the block that holds the parameter requested last."""

    def parameter(self, name: str, block: str) -> mx.array:
        """The parameter at the path `name` of the block at the path `block`, not yet evaluated.

        The same array for the whole call of a block. Between calls, a request for another block releases the arrays of
        this one: a module is often asked for its parameters in turn and again, and each new array needs all files.
        """
        if not self._calling and block != self._block:
            self._requested.clear()
            self._block = block
        if name not in self._requested:
            stored = self._ahead.pop(name) if name in self._ahead else self._take(name)
            self._requested[name] = self._fit(name, stored)
        return self._requested[name]

    @contextmanager
    def calling(self, path: str, following: Sequence[str]) -> Iterator[None]:
        """Surrounds the call of the block at `path`; the parameters it requested are dropped at the end.

        After an exception, the tensors read ahead are dropped too. Reading starts at once, for this block and the first
        of `following`, with the names that the block called last requested: the block may evaluate arrays while it
        runs, before it has requested all its parameters.
        """
        self._requested, self._calling = {}, True
        try:
            for later in following:
                self._soon(later)
            self._read_ahead(path, *following[:1])
            yield
            if self._used is not None:
                self._used(list(self._requested))
        except BaseException:
            self._ahead = {}
            raise
        finally:
            self._requested, self._calling = {}, False

    def read_next(self, path: str, following: Sequence[str]) -> None:
        """Reads ahead, for the first block of `following`, exactly what the block at `path` has requested."""
        self._usual = tuple(name.removeprefix(path) for name in self._requested if name.startswith(path))
        wanted = {block + name for block in following[:1] for name in self._usual}
        self._ahead = {name: array for name, array in self._ahead.items() if name in wanted}
        self._read_ahead(*following[:1])

    def _read_ahead(self, *blocks: str) -> None:
        """Starts to read the usual parameters of the blocks at these paths, without waiting.

        MLX does the reading. A thread that only filled the page cache would leave the copy to MLX, which takes 0.4 s
        for 680 MB on an EPYC. MLX's queue holds the arrays of one `async_eval` until all of them are read. Those that
        are being read already are therefore not passed again, or a block would stay in memory until the next is read.
        """
        started: list[mx.array] = []
        for name in (path + name for path in blocks for name in self._usual):
            if name not in self._ahead and name in self._names:  # quantisation may differ from block to block
                self._ahead[name] = self._take(name)
                started.append(self._ahead[name])
        mx.async_eval(started)

    def _take(self, name: str) -> mx.array:
        if name not in self._unread:
            with mx.stream(_reading_queue()):
                self._unread = self._read()
            self._names = frozenset(self._unread)
        return self._unread.pop(name)


class Stored:
    """Placeholder for a parameter in a module: the name of a tensor on disk, and the path of its block."""

    def __init__(self, reader: TensorReader, name: str, block: str):
        self.reader, self.name, self.block = reader, name, block

    def __repr__(self) -> str:
        return f"Stored({self.name})"


class _OnDemand(nn.Module):
    """Returns an array instead of a `Stored` on every access by key; iteration yields the `Stored` itself."""

    def __getitem__(self, key: str) -> Any:
        return _resolved(super().__getitem__(key))

    def get(self, key: str, default: Any = None) -> Any:
        return _resolved(super().get(key, default))

    def pop(self, key: str, *default: Any) -> Any:
        return _resolved(super().pop(key, *default))


def _resolved(value: Any) -> Any:
    return value.reader.parameter(value.name, value.block) if isinstance(value, Stored) else value


class PagedBlock(nn.Module):
    """A block with the children and the function of `block`; evaluates its result before it returns.

    It is not an instance of the class of `block`, so that a technique that compiles or fuses whole blocks does not
    mistake it for a block that holds its weights.
    """

    def __init__(self, block: nn.Module, reader: TensorReader, path: str, following: Sequence[str]):
        super().__init__()
        self.__dict__.update(block.__dict__)
        dict.update(self, block)
        self._call = type(block).__call__
        self._reader, self._path = reader, path
        object.__setattr__(self, "_following", following)  # a module takes a sequence for its children

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._reader.calling(self._path, self._following):
            out = self._call(self, *args, **kwargs)
            mx.async_eval(out)  # some readers read when an array is taken, not when it is evaluated
            self._reader.read_next(self._path, self._following)
            mx.eval(out)
        return out


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class of a module; for a module whose parameters are on disk, its class in the resident model."""
    kind = type(module)
    return kind.__bases__[1] if issubclass(kind, _OnDemand) else kind


def recast(module: nn.Module, kind: Any) -> nn.Module:
    """A shallow copy of a module with class `kind`; parameters on disk stay on disk."""
    recast_copy = copy(module)
    recast_copy.__class__ = _on_demand(kind) if isinstance(module, _OnDemand) else kind
    return recast_copy


@cache
def _on_demand(kind: Any) -> Any:
    """A subclass of `kind` for modules that hold `Stored`."""
    return type(kind.__name__, (_OnDemand, kind), {"__module__": kind.__module__})


@cache
def _reading_queue() -> mx.Stream:
    """A separate MLX queue, so that reading the next block does not wait for the operations of this one."""
    return mx.new_stream(mx.Device(mx.DeviceType.cpu))
