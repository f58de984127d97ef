"""Inputs scaled to a small rms: shows what an operation does where its eps decides, as no ordinary generation does.

A norm divides by sqrt(mean(x^2) + eps). With eps = 1e-6 and inputs of order 1, another eps changes the sixth digit.
With inputs of rms 1e-3 it changes the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.settings import is_positive


class _Faint(Wrapper):
    def __init__(self, inner: nn.Module, rms: float):
        super().__init__(inner)
        self._rms = rms

    def __call__(self, x: mx.array, *args: Any) -> Any:
        y = x.astype(mx.float32)
        size = mx.sqrt(mx.mean(mx.mean(y * y, axis=-1)))
        return self.inner((y * (self._rms / mx.maximum(size, 1e-30))).astype(x.dtype), *args)


@dataclass(frozen=True)
class FaintInputs:
    """Each site with its first input scaled to the rms `rms`, as a whole; zeros stay zeros."""

    sites: Sequence[str]
    rms: float = 1e-3
    preserves_function: ClassVar[bool] = False
    composes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not is_positive(self.rms):
            raise InputError(f"faint_inputs: rms is {self.rms!r}, expected a number above 0")

    def rewrite(self, site: Site) -> nn.Module:
        return _Faint(site.module, self.rms)
