"""Each module on a batch that repeats the same rows, keeping the first copy: the effect of batch layout on rounding.

Libraries choose their kernels, and with them the order of their sums, by the number of rows. The function is the same,
so any difference belongs to the noise floor. The batch is repeated operation by operation, so every array outside
keeps its shape. Cost: `copies` times the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.attention import Attend
from precision_lab.model.coded import LINEARS
from precision_lab.techniques.parts.kinds import expect_kind


class _Repeated(Wrapper):
    def __init__(self, inner: nn.Module, copies: int):
        super().__init__(inner)
        self.copies = copies

    def __call__(self, *args: mx.array | None) -> mx.array:
        rows = next(a.shape[0] for a in args if a is not None)
        # an array of one row for all samples, such as a causal mask, serves all copies
        repeated = [a if a is None or a.shape[0] != rows else mx.concatenate([a] * self.copies) for a in args]
        return self.inner(*repeated)[:rows]


@dataclass(frozen=True)
class BatchLayout:
    """Each linear or attention runs on `copies` copies of the batch; the first copy of the result is kept."""

    sites: Sequence[str]
    copies: int = 2
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = True
    of_linears: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.copies, int) or self.copies < 1:
            raise InputError(f"batch_layout.copies is {self.copies!r}, expected a whole number of at least 1")

    def rewrite(self, site: Site) -> nn.Module:
        expect_kind("batch_layout", site, *LINEARS, Attend)
        return _Repeated(site.module, self.copies)
