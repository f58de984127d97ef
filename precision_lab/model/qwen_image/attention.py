"""Joint attention of the two streams: separate projections, one softmax over [text, image].

B batch, L image tokens, T text tokens, D width, C channels a head.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.attention import Attend
from precision_lab.model.layers import Linear, RMSNorm, Sequential
from precision_lab.model.qwen_image.streams import Streams
from precision_lab.model.rotary import Rotary


class JointAttention(nn.Module):
    """Joint attention of a block; the added_* and add_* layers belong to the text stream, as in the checkpoint."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        head_dim = dim // num_heads
        self.num_heads = num_heads
        self.to_q = Linear(dim, dim)
        self.to_k = Linear(dim, dim)
        self.to_v = Linear(dim, dim)
        self.add_q_proj = Linear(dim, dim)
        self.add_k_proj = Linear(dim, dim)
        self.add_v_proj = Linear(dim, dim)
        self.norm_q = RMSNorm(head_dim)
        self.norm_k = RMSNorm(head_dim)
        self.norm_added_q = RMSNorm(head_dim)
        self.norm_added_k = RMSNorm(head_dim)
        self.rotary_q = Rotary()
        self.rotary_k = Rotary()
        self.rotary_added_q = Rotary()
        self.rotary_added_k = Rotary()
        self.attend = Attend()
        self.to_out = Sequential(Linear(dim, dim))
        self.to_add_out = Linear(dim, dim)

    def _heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], self.num_heads, -1)

    def __call__(self, x: Streams, rotations: Streams, mask: mx.array | None = None) -> Streams:
        """x: (B, L, D) and (B, T, D), modulated; rotations: (L, C / 2) and (T, C / 2);
        mask: (B, 1, 1, T + L), True where a key takes part, or None. Returns the shapes of x, before the gates.
        """
        img_q = self.rotary_q(self.norm_q(self._heads(self.to_q(x.img))), rotations.img)
        img_k = self.rotary_k(self.norm_k(self._heads(self.to_k(x.img))), rotations.img)
        img_v = self._heads(self.to_v(x.img))
        txt_q = self.rotary_added_q(self.norm_added_q(self._heads(self.add_q_proj(x.txt))), rotations.txt)
        txt_k = self.rotary_added_k(self.norm_added_k(self._heads(self.add_k_proj(x.txt))), rotations.txt)
        txt_v = self._heads(self.add_v_proj(x.txt))

        joint = self.attend(
            mx.concatenate([txt_q, img_q], axis=1),
            mx.concatenate([txt_k, img_k], axis=1),
            mx.concatenate([txt_v, img_v], axis=1),
            mask,
        ).flatten(2)
        txt, img = mx.split(joint, [x.txt.shape[1]], axis=1)
        return Streams(img=self.to_out(img), txt=self.to_add_out(txt))
