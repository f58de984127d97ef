"""Attention computed in chunks of queries and keys, with the softmax carried along: another order of the same sums.

What FlashAttention (Dao et al., arXiv:2205.14135) and every implementation that saves memory does; all in fp32, rounded
once like the plain model. In exact arithmetic the same function, so what differs belongs to the noise floor. Cost: on
a CPU more, smaller operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from precision_lab.instrument.sites import Site
from precision_lab.model.qwen_image.attention import Attend
from precision_lab.techniques.fused_attention import ATTEND, expect_attend
from precision_lab.techniques.parts.narrow_sums import check_block
from precision_lab.techniques.parts.online_softmax import MASKED, OnlineSoftmax


class _ChunkedAttend(Attend):
    def __init__(self, queries: int, keys: int):
        super().__init__()
        self.queries, self.keys = queries, keys

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
        dtype = q.dtype
        q, k, v = (a.transpose(0, 2, 1, 3).astype(mx.float32) for a in (q, k, v))
        chunks = [self._attend(chunk, k, v, mask) for chunk in _split(q, self.queries)]
        return mx.concatenate(chunks, axis=2).astype(dtype).transpose(0, 2, 1, 3)

    def _attend(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
        softmax = OnlineSoftmax()
        q = q * q.shape[-1] ** -0.5
        first = 0
        for k_chunk, v_chunk in zip(_split(k, self.keys), _split(v, self.keys), strict=True):
            scores = q @ k_chunk.swapaxes(-1, -2)
            last = first + k_chunk.shape[2]
            softmax.update(scores if mask is None else mx.where(mask[..., first:last], scores, MASKED), v_chunk)
            first = last
        return softmax.result()


def _split(x: mx.array, length: int) -> list[mx.array]:
    return [x[:, :, first : first + length] for first in range(0, x.shape[2], length)]


@dataclass(frozen=True)
class ChunkedAttention:
    """Chunks of `queries` queries and `keys` keys; the last of each may be shorter."""

    sites: Sequence[str] = ATTEND
    queries: int = 32
    keys: int = 32
    preserves_function: bool = True
    composes: bool = False

    def __post_init__(self) -> None:
        check_block("chunked_attention.queries", self.queries)
        check_block("chunked_attention.keys", self.keys)

    def rewrite(self, site: Site) -> nn.Module:
        expect_attend("chunked_attention", site)
        return _ChunkedAttend(self.queries, self.keys)
