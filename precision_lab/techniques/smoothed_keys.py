"""Keys less their mean over the tokens before they meet the queries: SageAttention's K smoothing.

Softmax does not change when all scores of a query shift by one number, and q . mean(k) is that number: the same
function in exact arithmetic. Keys share a large component per channel, so what is left is smaller and survives a
narrow format better (Zhang et al., SageAttention, arXiv:2410.02367, section 4.2). Listed after the attention it is to
serve: `technique=[sage_attention, smoothed_keys]`. Cost: one pass over the keys and its mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.techniques.fused_attention import ATTEND, expect_attend


class _SmoothedKeys(Wrapper):
    def __call__(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
        wide = k.astype(mx.float32)
        smooth = wide - wide.mean(axis=1, keepdims=True)
        return self.inner(q, smooth.astype(k.dtype), v, mask)


@dataclass(frozen=True)
class SmoothedKeys:
    """The mean key of each head, over all tokens, taken off in fp32; the difference rounded to the dtype of the keys.

    Padding is part of the mean, which changes nothing: any vector may be subtracted.
    """

    sites: Sequence[str] = ATTEND
    preserves_function: bool = True
    composes: bool = True

    def rewrite(self, site: Site) -> nn.Module:
        expect_attend("smoothed_keys", site)
        return _SmoothedKeys(site.module)
