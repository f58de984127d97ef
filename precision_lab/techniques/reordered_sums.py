"""The same linears with their inner products summed in another order: the measure of what rounding alone does.

Permuting the input channels of a linear together with the columns of its weight changes nothing in exact arithmetic.
What differs afterwards is noise, and a drift smaller than it is no finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site, Wrapper


class _Reordered(Wrapper):
    def __init__(self, inner: nn.Module, order: mx.array):
        super().__init__(inner)
        self._order = order
        self._linear = copy(inner)
        self._linear.weight = inner.weight[:, order]

    def __call__(self, x: mx.array) -> mx.array:
        return self._linear(x[..., self._order])


@dataclass(frozen=True)
class ReorderedSums:
    """Each site's linear with its input channels in a random order drawn from `seed`."""

    sites: Sequence[str] = ("transformer_blocks.*.{attn.{to_q,to_k,to_v},img_mlp.net.2,txt_mlp.net.2}",)
    seed: int = 0
    preserves_function: bool = True
    composes: bool = False

    def rewrite(self, site: Site) -> nn.Module:
        if not isinstance(site.module, nn.Linear):
            raise InputError(f"reordered_sums: {site} is {type(site.module).__name__}, expected Linear")
        channels = site.module.weight.shape[1]
        return _Reordered(site.module, mx.array(np.random.default_rng(self.seed).permutation(channels)))
