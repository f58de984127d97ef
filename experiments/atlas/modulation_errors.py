"""The error that quantising the shared modulation of 2.1 makes, given to the blocks as one error or as one each.

`affine4_modulation` gives all blocks the same error. Rolled along the channels by another distance in each block, and
with another sign in every second one, it has the same size in each block but is no longer the same. If sharing is what
makes the modulation sensitive, errors of their own must do less harm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.quantized import Quantization, QuantizedLinear
from precision_lab.model.qwen_image_21.block import Modulation
from precision_lab.techniques.base import ByPlace, Places

STRIDE = 3
"""Channels by which the error is rolled from one block to the next: 32 blocks times 3 are the 96 of micro_21."""


class _Error:
    """The error of the modulation in the current pass, (rows, 4 D) in fp32."""

    array: mx.array


class _Measured(Wrapper):
    """The linear itself, beside which the error of its quantised form is measured."""

    def __init__(self, inner: nn.Linear, quantization: Quantization, error: _Error):
        super().__init__(inner)
        self._quantized = (QuantizedLinear.packed(inner, quantization),)  # a tuple holds no module
        self._error = error

    def __call__(self, x: mx.array) -> mx.array:
        exact: mx.array = self.inner(x)
        self._error.array = self._quantized[0](x).astype(mx.float32) - exact.astype(mx.float32)
        return exact


class _Disturbed(Wrapper):
    """A block that reads the modulation plus an error."""

    def __init__(self, site: Site, error: _Error, own: bool):
        super().__init__(site.module)
        self._error, self._block = error, (site.block or 0) if own else 0

    def __call__(self, x: mx.array, modulation: Modulation, *args: Any) -> Any:
        sign = -1 if self._block % 2 else 1
        errors = mx.split(self._error.array, len(modulation), axis=-1)
        moved = (sign * mx.roll(error, STRIDE * self._block, axis=-1) for error in errors)
        disturbed = (
            (part.astype(mx.float32) + error).astype(part.dtype) for part, error in zip(modulation, moved, strict=True)
        )
        return self.inner(x, Modulation(*disturbed), *args)


@dataclass(frozen=True)
class ModulationErrors(ByPlace):
    """own: whether each block has an error of its own."""

    own: bool
    bits: int = 4
    preserves_function: ClassVar[bool] = False
    composes: ClassVar[bool] = False
    _error: _Error = field(default_factory=_Error, init=False, repr=False, compare=False)

    @property
    def places(self) -> Places:
        quantization = Quantization.checked("modulation_errors", "affine", self.bits)
        return {
            "modulation.1": lambda site: _Measured(
                site.module, quantization.fitting(site.module.weight.shape[1]), self._error
            ),
            "transformer_blocks.*": lambda site: _Disturbed(site, self._error, self.own),
        }
