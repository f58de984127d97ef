"""The same row twice in a batch, and the first of the results: what batch layout does to rounding.

Libraries choose their kernels, and so the order of their sums, by the number of rows. The function is the same, so what
differs belongs to the noise floor. Applied operation by operation, so that every array outside keeps its shape. Cost:
twice the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.qwen_image.attention import Attend
from precision_lab.techniques.fused_attention import ATTEND
from precision_lab.techniques.narrow_accumulators import BLOCK_LINEARS


class _Repeated(Wrapper):
    def __init__(self, inner: nn.Module, copies: int):
        super().__init__(inner)
        self.copies = copies

    def __call__(self, *args: mx.array | None) -> mx.array:
        repeated = [None if a is None else mx.concatenate([a] * self.copies) for a in args]
        rows = next(a.shape[0] for a in args if a is not None)
        return self.inner(*repeated)[:rows]


@dataclass(frozen=True)
class BatchLayout:
    """`copies` of the batch through each linear and attention, of which the first is kept."""

    sites: Sequence[str] = (*BLOCK_LINEARS, *ATTEND)
    copies: int = 2
    preserves_function: bool = True
    composes: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.copies, int) or self.copies < 1:
            raise InputError(f"batch_layout.copies is {self.copies!r}, expected a whole number of at least 1")

    def rewrite(self, site: Site) -> nn.Module:
        if not isinstance(site.module, nn.Linear | nn.QuantizedLinear | Attend):
            raise InputError(f"batch_layout: {site} is {type(site.module).__name__}, expected Linear or Attend")
        return _Repeated(site.module, self.copies)
