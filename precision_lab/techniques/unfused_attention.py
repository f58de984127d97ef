"""Attention as separate operations, each of whose results is rounded to the dtype of the activations.

This is the "math" path of PyTorch and the fallback of MLX: q * scale, scores, probabilities and output are each
rounded; only the sums of the two products are fp32 inside, as in every matmul library. The softmax is `mx.softmax`.
With `precise: true` its exponentials and their sum are fp32 and the result is rounded once (`softmax(dtype=float32)` in
PyTorch code); otherwise the sum is kept in the storage dtype too. Cost on a GPU: the scores pass through memory twice.
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
    """a @ b summed in fp32 and rounded once. Upcast because MLX's 16-bit loops on CPUs are slow."""
    return (a.astype(mx.float32) @ b.astype(mx.float32)).astype(a.dtype)


@dataclass(frozen=True)
class UnfusedAttention:
    """Separate operations in the dtype of the activations; `precise` keeps the inside of the softmax in fp32."""

    sites: Sequence[str] = ATTEND
    precise: bool = True
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False

    def rewrite(self, site: Site) -> nn.Module:
        expect_kind("unfused_attention", site, Attend)
        return _UnfusedAttend(self.precise)
