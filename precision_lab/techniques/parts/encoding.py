"""Linears whose weight a technique encodes, kept while the weight lives.

A technique is applied anew for each generation and each timed step, so that the model is plain in between. Encoding
takes as long as several steps in some formats (k-quants, SVDQuant), and gives the same arrays each time.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from copy import copy
from dataclasses import dataclass, field
from functools import cache

import mlx.core as mx
import mlx.nn as nn

from precision_lab.device import memory

_SHARE = 16
"""The part of the device's memory that kept arrays may take. What is beyond is encoded anew each time."""


@dataclass
class _Kept:
    """The encoded linears of one weight, which is gone when `weight` is dead, and the bytes of their arrays."""

    weight: weakref.ref[mx.array]
    linears: dict[Hashable, nn.Module] = field(default_factory=dict)
    nbytes: int = 0


class Encoder:
    """budget: the most bytes of arrays that are kept, over all weights."""

    def __init__(self, budget: int):
        self._budget = budget
        self._kept: dict[int, _Kept] = {}
        self.nbytes = 0
        """What is kept."""

    def encoded(self, linear: nn.Module, how: Hashable, encode: Callable[[], nn.Module]) -> nn.Module:
        """A linear of its own with the arrays of `encode()` and the bias of `linear`.

        how: the format; with an equal one, `encode` gives the same arrays. A weight is known by the array that
        `linear` holds: one that is read from disk at each call, or assigned anew, is another.
        """
        try:
            hash(how)
        except TypeError:  # a format from elsewhere that can change
            return encode()
        weight = linear.weight
        kept = self._kept.get(id(weight))
        known = kept.linears.get(how) if kept is not None else None
        if known is None:
            known = encode()
            self._keep(weight, how, known)
        module = copy(known)
        module.pop("bias", None)
        if "bias" in linear:
            module.bias = linear.bias
        return module

    def _keep(self, weight: mx.array, how: Hashable, module: nn.Module) -> None:
        size = _nbytes(module)
        if self.nbytes + size > self._budget:
            return
        key = id(weight)
        if key not in self._kept:
            self._kept[key] = _Kept(weakref.ref(weight, lambda _: self._forget(key)))
        self._kept[key].linears[how] = module
        self._kept[key].nbytes += size
        self.nbytes += size

    def _forget(self, key: int) -> None:
        # without names of this module: at the end of the process, when weights die, they are gone
        self.nbytes -= self._kept.pop(key).nbytes


@cache
def encoder() -> Encoder:
    """That of this process."""
    return Encoder(memory.of_the_device() // _SHARE)


def _nbytes(module: nn.Module) -> int:
    return sum(array.nbytes for name, array in module.items() if isinstance(array, mx.array) and name != "bias")
