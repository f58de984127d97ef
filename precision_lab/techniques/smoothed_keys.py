"""Keys minus their mean over the tokens, before they meet the queries: SageAttention's K smoothing.

Softmax does not change when all scores of a query shift by one number, here q . mean(k), so it is the same function in
exact arithmetic. Keys share a large component in each channel; without it they are smaller and survive a narrow format
better (Zhang et al., SageAttention, arXiv:2410.02367, section 4.2). List it after the attention that it serves:
`technique=[sage_attention, smoothed_keys]`. Cost: one pass over the keys and the computation of their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.attention import Attend
from precision_lab.techniques.parts.kinds import expect_kind
from precision_lab.techniques.parts.qwen_image import ATTEND


class _SmoothedKeys(Wrapper):
    def __call__(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
        wide = k.astype(mx.float32)
        smooth = wide - wide.mean(axis=1, keepdims=True)
        return self.inner(q, smooth.astype(k.dtype), v, mask)


@dataclass(frozen=True)
class SmoothedKeys:
    """Subtracts each head's mean key over all tokens in fp32, and rounds the difference to the dtype of the keys.

    Padding is part of the mean. That is harmless, because any vector may be subtracted.
    """

    sites: Sequence[str] = ATTEND
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = True

    def rewrite(self, site: Site) -> nn.Module:
        expect_kind("smoothed_keys", site, Attend)
        return _SmoothedKeys(site.module)
