"""The gated residual add, whose gate holds one row for all tokens of a sample or one for each token.

B batch, L tokens, D width.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


def over_tokens(row: mx.array) -> mx.array:
    """`row` with an axis of tokens: (B, D) becomes (B, 1, D); an array that has the axis is returned unchanged."""
    return row[:, None] if row.ndim == 2 else row


class GatedAdd(nn.Module):
    """`residual + gate * update`; residual and update: (B, L, D), gate: (B, D), or (B or 1, L or 1, D)."""

    def __call__(self, residual: mx.array, gate: mx.array, update: mx.array) -> mx.array:
        return residual + over_tokens(gate) * update
