"""The softmax scale applied to Q and K before their product instead of to the scores.

MIXED_PRECISION_OPTIMIZATION (S2) split 1/sqrt(D) evenly, with Q and K each times D^-1/4, and reverted it because MLX
keeps the scores in fp32 anyway. Cost: two more element-wise passes over Q and K, and one rounding of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site
from precision_lab.model.attention import Attend
from precision_lab.model.layers import scaled_dot_product_attention
from precision_lab.techniques.parts.kinds import expect_kind
from precision_lab.techniques.parts.qwen_image import ATTEND


class _PreScaledAttend(nn.Module):
    def __init__(self, q_share: float):
        super().__init__()
        self.q_share = q_share

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
        scale = q.shape[-1] ** -0.5
        q, k = q * scale**self.q_share, k * scale ** (1 - self.q_share)
        q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
        return scaled_dot_product_attention(q, k, v, scale=1.0, mask=mask).transpose(0, 2, 1, 3)


@dataclass(frozen=True)
class PreAttentionScaling:
    """`q_share` is Q's share of the scale's exponent: with 0.5 Q and K get D^-1/4 each, with 1 Q gets all of it."""

    sites: Sequence[str] = ATTEND
    q_share: float = 0.5
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False

    def rewrite(self, site: Site) -> nn.Module:
        expect_kind("pre_attention_scaling", site, Attend)
        return _PreScaledAttend(self.q_share)
