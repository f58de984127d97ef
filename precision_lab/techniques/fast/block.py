"""The base of fused blocks: a module in place of a plain block, compiled once for all blocks of a model.

The function is that of the plain block, with three differences. The operation after a linear adds the bias to its
product. Normalisation, modulation, gates, activations, RMSNorm and rotation work in fp32 and round once. A modulation
depends on the timestep alone, so it is computed once for each timestep instead of at each call.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Wrapper, walk
from precision_lab.model.coded import CodedLinear
from precision_lab.model.layers import Linear, on_cpu
from precision_lab.model.quantized import QuantizedLinear

_STORED = (QuantizedLinear, CodedLinear)
"""What may take the place of a plain linear."""

IN_FLIGHT = 2
"""Number of blocks that wait for the device while the next is built."""


class Pace:
    """Starts every block as soon as it is built, and builds at most IN_FLIGHT blocks ahead of the device.

    If all blocks were evaluated at the end, the device would wait until the last one is built (10 ms of 127 at
    1024 x 1024 on an H100). MLX builds several times faster than the device computes, so it would also hold the
    temporaries of dozens of blocks (12 GB).
    """

    def __init__(self) -> None:
        self._launched: deque[mx.array] = deque()

    def launch(self, *outputs: mx.array) -> None:
        """Starts the computation of one block's outputs."""
        mx.async_eval(*outputs)
        self._launched.append(outputs[0])
        if len(self._launched) > IN_FLIGHT:
            mx.eval(self._launched.popleft())


class FusedBlock(Wrapper):
    """Replaces a plain block. Raises InputError if a module inside is rewritten or observed.

    Neither could have an effect, because the block calls none of its modules but those that compute modulations.
    """

    opaque: ClassVar[bool] = True

    def __init__(self, inner: nn.Module, address: str, pace: Pace):
        super().__init__(inner)
        self._address = address
        self._pace = pace
        self._parts = _parts(inner)
        plain = _plain_classes(self.smallest)
        for path, kind in _classes(inner).items():
            expected = plain.get(path)
            if kind is not expected and not (expected is Linear and kind in _STORED):
                raise InputError(
                    f"fast: {address}.{path} is {kind.__name__}, expected the plain model's module: "
                    "fast does not combine with techniques or probes inside a block, except stored weights"
                )

    @staticmethod
    @abstractmethod
    def smallest() -> nn.Module:
        """A plain block as small as possible, whose modules have the classes that are expected."""

    def _expect_untouched(self) -> None:
        for holder, key, module, kind in self._parts:
            if holder[key] is not module or type(module) is not kind:
                raise InputError(
                    f"fast: {self._address} is observed or rewritten inside, where a fast block calls nothing; observe "
                    "transformer_blocks.* and modules outside of them (probe.range.sites, drift.sites)"
                )


def _parts(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module, type]]:
    """Every module below `module`, with its holder, its name in the holder and its class."""
    found = []
    for key, child in module.items():
        if isinstance(child, nn.Module):
            found += [(module, key, child, type(child)), *_parts(child)]
    return found


def _classes(block: nn.Module) -> dict[str, type]:
    """The classes of all modules of a block, by path."""
    return {site.path: type(site.module) for site in walk({"block": block})}


@lru_cache
def _plain_classes(smallest: Callable[[], nn.Module]) -> dict[str, type]:
    return _classes(smallest())


@lru_cache
def compiled(function: Callable[..., Any], *constants: Hashable) -> Callable[..., Any]:
    """A block as a function of arrays, with its first arguments fixed.

    All blocks share it, so that MLX traces it once a shape.
    """
    call = partial(function, *constants)
    return call if on_cpu() else mx.compile(call)


def packed(linears: Sequence[nn.Module], name: str) -> mx.array:
    """Concatenates the linears' parameters of that name, and turns their own into views of the result.

    Values and memory stay the same; copies would add 6.8 GB in 1.x and 9.7 GB in 2.1, beside models of 41 and 14 GB.
    """
    joined = mx.concatenate([linear[name] for linear in linears])
    for linear, part in zip(linears, mx.split(joined, len(linears)), strict=True):
        linear[name] = part
    mx.eval(joined, [linear[name] for linear in linears])
    return joined
