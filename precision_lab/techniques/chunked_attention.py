"""Attention computed in chunks of queries and keys with an online softmax: another order of the same sums.

FlashAttention (Dao et al., arXiv:2205.14135) and every memory-saving implementation compute attention like this. Here
everything is in fp32 and rounded once, as in the plain model. In exact arithmetic it is the same function, so any
difference belongs to the noise floor. Cost: more and smaller operations on a CPU.
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
from precision_lab.techniques.parts.narrow_sums import check_block
from precision_lab.techniques.parts.online_softmax import MASKED, OnlineSoftmax
from precision_lab.techniques.parts.qwen_image import ATTEND


class _ChunkedAttend(Attend):
    def __init__(self, queries: int, keys: int):
        super().__init__()
        self.queries, self.keys = queries, keys

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
        dtype = q.dtype
        q, k, v = (a.transpose(0, 2, 1, 3).astype(mx.float32) for a in (q, k, v))
        parts = _split(q, self.queries)
        masks = [mask] * len(parts) if mask is None or mask.shape[2] == 1 else _split(mask, self.queries)
        chunks = [self._attend(part, k, v, of_part) for part, of_part in zip(parts, masks, strict=True)]
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
    """Chunks of `queries` queries and `keys` keys; the last chunk of each may be shorter."""

    sites: Sequence[str] = ATTEND
    queries: int = 32
    keys: int = 32
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_block("chunked_attention.queries", self.queries)
        check_block("chunked_attention.keys", self.keys)

    def rewrite(self, site: Site) -> nn.Module:
        expect_kind("chunked_attention", site, Attend)
        return _ChunkedAttend(self.queries, self.keys)
