"""Attention by `mx.fast.scaled_dot_product_attention` in the dtype of the activations, whatever it does there.

The fused kernels of Metal and CUDA keep scores and softmax in fp32, and there this equals the plain model. On a CPU,
and on GPUs for shapes without a kernel, MLX falls back to separate operations that round q * scale, scores and
probabilities to that dtype (error 4.4e-3 against 1.7e-3 in bf16), which the plain model avoids. Cost: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site
from precision_lab.model.qwen_image.attention import Attend

ATTEND = ("transformer_blocks.*.attn.attend",)


class _FusedAttend(Attend):
    def __call__(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
        q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
        return out.transpose(0, 2, 1, 3)


def expect_attend(technique: str, site: Site) -> None:
    """Raises InputError unless the module at the site is the plain Attend or another technique's core of it."""
    if not isinstance(site.module, Attend):
        raise InputError(f"{technique}: {site} is {type(site.module).__name__}, expected Attend")


@dataclass(frozen=True)
class FusedAttention:
    """MLX's own attention at every site, without the upcast of the plain model on CPUs."""

    sites: Sequence[str] = ATTEND
    preserves_function: bool = True
    composes: bool = False

    def rewrite(self, site: Site) -> nn.Module:
        expect_attend("fused_attention", site)
        return _FusedAttend()
