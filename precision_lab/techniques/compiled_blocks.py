"""Transformer blocks compiled by `mx.compile`, which fuses element-wise chains.

The function is the same and temporaries keep their dtype, so any difference from eager execution belongs to the noise
floor. The inside of a compiled block cannot be observed, because its values are not outputs. On a CPU it needs a C++
compiler and is slower than eager execution. The first call after a change compiles and takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.qwen_image.block import TransformerBlock
from precision_lab.model.qwen_image_21.block import TransformerBlock as TransformerBlock21
from precision_lab.techniques.parts.kinds import expect_kind


class _Compiled(Wrapper):
    """Compiles the block again whenever a module in it has been replaced: MLX would go on calling the old one."""

    opaque: ClassVar[bool] = True

    def __init__(self, inner: nn.Module, address: str):
        super().__init__(inner)
        self._address = address
        self._original = _anatomy(inner)
        self._compiled_anatomy: dict[int, type] | None = None
        self._compiled: dict[Any, _Flat] = {}

    def __call__(self, *args: Any) -> Any:
        anatomy = _anatomy(self.inner)
        if anatomy != self._compiled_anatomy:
            if any(self._original.get(key, kind) is not kind for key, kind in anatomy.items()):
                raise InputError(
                    f"compiled_blocks: a module inside {self._address} is observed, which a compiled block does not "
                    "allow; observe transformer_blocks.* and modules outside of them (probe.range.sites, drift.sites)"
                )
            self._compiled, self._compiled_anatomy = {}, anatomy
        arrays: list[mx.array] = []
        shape = _without_arrays(args, arrays)
        if shape not in self._compiled:
            self._compiled[shape] = _Flat(self.inner, shape)
        return self._compiled[shape](arrays)


def _anatomy(module: nn.Module) -> dict[int, type]:
    """The identities and classes of the modules inside: a tap changes a class, a swap replaces a module."""
    return {id(inner): type(inner) for inner in module.modules()}


class _Flat:
    """The block as a function of arrays alone, the only kind that MLX compiles; `shape`: its other arguments."""

    def __init__(self, block: nn.Module, shape: Any):
        self._result: Any = None

        def call(*arrays: mx.array) -> list[mx.array]:
            out: list[mx.array] = []
            self._result = _without_arrays(block(*_with_arrays(shape, iter(arrays))), out)
            return out

        self._call: Callable[..., list[mx.array]] = mx.compile(call)

    def __call__(self, arrays: Sequence[mx.array]) -> Any:
        out = self._call(*arrays)  # before the shape of the result, which is known after the first call
        return _with_arrays(self._result, iter(out))


_ARRAY = object()
"""Where an array was."""


def _without_arrays(value: Any, arrays: list[mx.array]) -> Any:
    """`value`, an array or nested tuples, with `_ARRAY` in place of each array; the arrays are appended to `arrays`."""
    if isinstance(value, mx.array):
        arrays.append(value)
        return _ARRAY
    return _rebuilt(value, lambda item: _without_arrays(item, arrays))


def _with_arrays(shape: Any, arrays: Iterator[mx.array]) -> Any:
    """The inverse of `_without_arrays`."""
    return next(arrays) if shape is _ARRAY else _rebuilt(shape, lambda item: _with_arrays(item, arrays))


def _rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    if not isinstance(value, tuple):
        return value
    items = [change(item) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


@dataclass(frozen=True)
class CompiledBlocks:
    """Each block as one compiled function."""

    sites: Sequence[str] = ("transformer_blocks.*",)
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False

    def rewrite(self, site: Site) -> nn.Module:
        expect_kind("compiled_blocks", site, TransformerBlock, TransformerBlock21)
        return _Compiled(site.module, str(site))
