"""Attention as separate operations, each result rounded to the dtype of the activations.

The "math" path of PyTorch and the fallback of MLX: q * scale, scores, probabilities and output are each rounded; only
the sums of the two products are fp32 inside, as in every matmul library. The softmax is `mx.softmax`: with
`precise: true` its exponentials and their sum are fp32 and the result is rounded once (`softmax(dtype=float32)` in
PyTorch code), without it the sum too is kept in the storage dtype. Cost on a GPU: the scores go through memory twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site
from precision_lab.model.qwen_image.attention import Attend
from precision_lab.techniques.fused_attention import ATTEND, expect_attend


class _UnfusedAttend(Attend):
    def __init__(self, precise: bool):
        super().__init__()
        self.precise = precise

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
        q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
        scores = _matmul(q * q.shape[-1] ** -0.5, k.swapaxes(-1, -2))
        if mask is not None:
            scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
        return _matmul(mx.softmax(scores, axis=-1, precise=self.precise), v).transpose(0, 2, 1, 3)


def _matmul(a: mx.array, b: mx.array) -> mx.array:
    """a @ b summed in fp32 and rounded once: upcast, since MLX's 16-bit loops on CPUs are slow."""
    return (a.astype(mx.float32) @ b.astype(mx.float32)).astype(a.dtype)


@dataclass(frozen=True)
class UnfusedAttention:
    """Separate operations in the dtype of the activations; `precise` keeps the inside of the softmax in fp32."""

    sites: Sequence[str] = ATTEND
    precise: bool = True
    preserves_function: bool = True
    composes: bool = False

    def rewrite(self, site: Site) -> nn.Module:
        expect_attend("unfused_attention", site)
        return _UnfusedAttend(self.precise)
