"""The same linears with their inner products summed in another order: a measure of the effect of rounding alone.

Permuting the input channels of a linear together with the columns of its weight changes nothing in exact arithmetic.
The difference that remains is noise, and a drift smaller than this noise is no finding. Cost: a gather of the input. A
quantised weight is decoded and permuted at each call, because the channels of a group cannot be permuted while packed;
its products are summed in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.coded import linear_shape, linear_weight
from precision_lab.model.quantized import product
from precision_lab.techniques.parts.kinds import expect_exact_inputs


class _Reordered(Wrapper):
    def __init__(self, inner: nn.Module, order: mx.array):
        super().__init__(inner)
        self._order = order
        self._linear = copy(inner)
        self._linear.weight = inner.weight[:, order]

    def __call__(self, x: mx.array) -> mx.array:
        return self._linear(x[..., self._order])


class _ReorderedDecoded(Wrapper):
    def __init__(self, inner: nn.Module, order: mx.array):
        super().__init__(inner)
        self._order = order

    def __call__(self, x: mx.array) -> mx.array:
        weight = linear_weight(self.inner, x.dtype)[:, self._order]
        return product(x[..., self._order], weight, self.inner.get("bias"))


@dataclass(frozen=True)
class ReorderedSums:
    """Each site's linear with its input channels in a random order drawn from `seed`."""

    sites: Sequence[str]
    seed: int = 0
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False
    of_linears: ClassVar[bool] = True

    def rewrite(self, site: Site) -> nn.Module:
        expect_exact_inputs("reordered_sums", site)
        linear = site.module
        order = mx.array(np.random.default_rng(self.seed).permutation(linear_shape(linear)[1]))
        return _Reordered(linear, order) if isinstance(linear, nn.Linear) else _ReorderedDecoded(linear, order)
