"""The input of a feed-forward times one factor and its output times another: 0.25 and 4 as published.

MIXED_PRECISION_OPTIMIZATION (S3) tried it against large activations, found the values LARGER, and reverted it. It is a
different function even in exact arithmetic: GELU is not homogeneous, and the biases of the linears are not scaled with
the input, so the second bias comes out multiplied by the output factor. Cost: two element-wise passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site, Wrapper


class _Scaled(Wrapper):
    def __init__(self, inner: nn.Module, input_scale: float, output_scale: float):
        super().__init__(inner)
        self.input_scale = input_scale
        self.output_scale = output_scale

    def __call__(self, x: mx.array) -> mx.array:
        return self.inner(x * self.input_scale) * self.output_scale


@dataclass(frozen=True)
class FFNScaling:
    """`output_scale * ffn(input_scale * x)` at every site."""

    sites: Sequence[str]
    input_scale: float = 0.25
    output_scale: float = 4.0
    preserves_function: ClassVar[bool] = False
    composes: ClassVar[bool] = False

    def rewrite(self, site: Site) -> nn.Module:
        return _Scaled(site.module, self.input_scale, self.output_scale)
