"""Softmax and weighted sum over keys that arrive in blocks (Milakov and Gimelshein, arXiv:1805.02867; FlashAttention).

B batch, H heads, M queries, n keys of a block, C channels a head.
"""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx

MASKED = float(mx.finfo(mx.float32).min)
"""The score of a masked key: finite, so that a block of masked keys gives no NaN."""


class Accumulate(Protocol):
    """Adds a block's `p @ v` to the running sum of the blocks before it, all fp32: p (B, H, M, n), v (B, H, n, C)."""

    def __call__(self, total: mx.array, p: mx.array, v: mx.array) -> mx.array: ...


def in_float32(total: mx.array, p: mx.array, v: mx.array) -> mx.array:
    """Accumulates in fp32, as fused kernels do."""
    return total + p @ v


class OnlineSoftmax:
    """The state of attention after some blocks of keys: running maximum, denominator and sum, all fp32."""

    def __init__(self, accumulate: Accumulate = in_float32):
        self._accumulate = accumulate
        self._state: tuple[mx.array, mx.array, mx.array] | None = None

    def update(self, scores: mx.array, v: mx.array) -> None:
        """Adds a block of keys; scores: (B, H, M, n), v: (B, H, n, C), both fp32."""
        highest = mx.max(scores, axis=-1, keepdims=True)
        if self._state is None:
            p = mx.exp(scores - highest)
            zeros = mx.zeros((*scores.shape[:-1], v.shape[-1]))
            self._state = highest, p.sum(axis=-1, keepdims=True), self._accumulate(zeros, p, v)
            return
        before, denominator, total = self._state
        highest = mx.maximum(before, highest)
        p, shrink = mx.exp(scores - highest), mx.exp(before - highest)
        denominator = denominator * shrink + p.sum(axis=-1, keepdims=True)
        self._state = highest, denominator, self._accumulate(total * shrink, p, v)

    def result(self) -> mx.array:
        """The attention over all keys so far, (B, H, M, C) fp32."""
        assert self._state is not None, "no keys"
        _, denominator, total = self._state
        return total / denominator
