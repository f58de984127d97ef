"""Block-causal attention of one stream: causal over the text, over all tokens from the target.

B batch, N tokens in the pass, D width, H heads, C channels a head.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.attention import Attend
from precision_lab.model.layers import Linear, RMSNorm, Sequential
from precision_lab.model.qwen_image_21.prefix import KeysValues, Output
from precision_lab.model.qwen_image_21.segments import Segments
from precision_lab.model.rotary import Rotary


class Attention(nn.Module):
    """Attention of a block; `attend_prefix` takes the queries of the prefix and `attend` those of the target."""

    def __init__(self, dim: int, num_heads: int, eps: float):
        super().__init__()
        head_dim = dim // num_heads
        self.num_heads = num_heads
        self.to_q = Linear(dim, dim, bias=False)
        self.to_k = Linear(dim, dim, bias=False)
        self.to_v = Linear(dim, dim, bias=False)
        self.norm_q = RMSNorm(head_dim, eps)
        self.norm_k = RMSNorm(head_dim, eps)
        self.rotary_q = Rotary()
        self.rotary_k = Rotary()
        self.attend_prefix = Attend()
        self.attend = Attend()
        self.to_out = Sequential(Linear(dim, dim, bias=False))

    def _heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], self.num_heads, -1)

    def __call__(self, x: mx.array, rotation: mx.array, segments: Segments, prefix: KeysValues | None = None) -> Output:
        """x: (B, N, D), modulated; rotation: (N, C / 2); prefix: that of a pass of the target alone.

        Returns (B, N, D), before the gate, and in a pass of the prefix its keys and values.
        """
        q = self.rotary_q(self.norm_q(self._heads(self.to_q(x))), rotation)
        k = self.rotary_k(self.norm_k(self._heads(self.to_k(x))), rotation)
        v = self._heads(self.to_v(x))
        if prefix is not None:
            k = mx.concatenate([prefix.keys.astype(k.dtype), k], axis=1)
            v = mx.concatenate([prefix.values.astype(v.dtype), v], axis=1)
        parts = self._attended(q, k, v, segments)
        joint = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)
        return Output(self.to_out(joint.flatten(2)), KeysValues(k, v) if segments.target is None else None)

    def _attended(self, q: mx.array, k: mx.array, v: mx.array, segments: Segments) -> list[mx.array]:
        parts = [
            self.attend_prefix(segments.of(part, q), k[:, : part.end], v[:, : part.end], part.mask)
            for part in segments.prefix
        ]
        if segments.target is not None:
            parts.append(self.attend(segments.of(segments.target, q), k, v, segments.target.mask))
        return parts
