"""Attention by `mx.fast.scaled_dot_product_attention` in the dtype of the activations, on whichever path MLX takes.

The fused kernels of Metal and CUDA keep scores and softmax in fp32, where the result equals the plain model's. On a
CPU, and on a GPU for shapes without a kernel, MLX falls back to separate operations that round q * scale, scores and
probabilities to that dtype (error 4.4e-3 against 1.7e-3 in bf16); the plain model avoids this. Cost: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site
from precision_lab.model.attention import Attend
from precision_lab.techniques.parts.kinds import expect_kind
from precision_lab.techniques.parts.qwen_image import ATTEND


class _FusedAttend(Attend):
    def __call__(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
        q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
        return out.transpose(0, 2, 1, 3)


@dataclass(frozen=True)
class FusedAttention:
    """MLX's own attention at every site, without the upcast of the plain model on CPUs."""

    sites: Sequence[str] = ATTEND
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False

    def rewrite(self, site: Site) -> nn.Module:
        expect_kind("fused_attention", site, Attend)
        return _FusedAttend()
