"""Attention of heads that are given, shared by the transformers.

B batch, N queries, M keys, H heads, C channels a head.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.layers import scaled_dot_product_attention


class Attend(nn.Module):
    """softmax(q k^T / sqrt(C)) v.

    q: (B, N, H, C); k, v: (B, M, H, C); mask: (B or 1, 1, N or 1, M), True where a query may read a key, or None.
    Returns the shape of q.
    """

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
        q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
        out = scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
        return out.transpose(0, 2, 1, 3)
