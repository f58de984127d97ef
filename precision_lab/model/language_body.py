"""The language body of Qwen2.5-VL and Qwen3-VL (Qwen2_5_VLTextModel and Qwen3VLTextModel in transformers).

The configuration states what differs between the two: biases, norms of queries and keys, and the final norm.

B batch, L tokens, D width, H query heads, K key-value heads, C channels a head.
"""

from __future__ import annotations

from collections.abc import Collection, MutableMapping
from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.model.language_body_config import LanguageBodyConfig
from precision_lab.model.layers import Add, Linear, Multiply, RMSNorm, SiLU, scaled_dot_product_attention

_NOT_NEEDED = ("lm_head.", "visual.", "model.visual.", "language_model.lm_head.", "vision_tower.")
"""Prefixes of the names of the output head and the vision tower; the last two occur in MLX's conversions."""


class Rotation(NamedTuple):
    """cos and sin of the angles of each position: (L, C / 2) each, fp32."""

    cos: mx.array
    sin: mx.array


class RotaryEmbedding(nn.Module):
    """Rotations of the positions 0 .. L-1.

    For text, the three axes of M-RoPE have the same position, which equals RoPE on one axis, whether the axes have
    contiguous (Qwen2.5-VL) or interleaved channels (Qwen3-VL). Positions include padding, as in transformers 5, because
    attention depends only on their differences.
    """

    def __init__(self, head_dim: int, theta: float):
        super().__init__()
        self._head_dim = head_dim
        self._theta = theta

    def __call__(self, num_tokens: int) -> Rotation:
        return rotation(num_tokens, self._head_dim, self._theta)


@lru_cache(maxsize=32)
def rotation(num_tokens: int, head_dim: int, theta: float) -> Rotation:
    """cos and sin of `position * theta^(-2 i / C)`: (L, C / 2) each, fp32.

    Angles are fp32 products of the position and an fp32 frequency, as in the reference. Their cos and sin are computed
    in float64 and rounded once.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1) / np.power(theta, exponents.astype(np.float64)).astype(np.float32)
    angles = np.outer(np.arange(num_tokens, dtype=np.float32), frequencies).astype(np.float64)
    return Rotation(mx.array(np.cos(angles).astype(np.float32)), mx.array(np.sin(angles).astype(np.float32)))


class Rotary(nn.Module):
    """Rotates channel i with channel i + C / 2; x: (B, L, H, C).

    cos and sin are rounded to the dtype of x, and the arithmetic is in that dtype, as in transformers.
    """

    def __call__(self, x: mx.array, rotation: Rotation) -> mx.array:
        cos, sin = (mx.tile(a, (1, 2))[:, None, :].astype(x.dtype) for a in rotation)
        first, second = mx.split(x, 2, axis=-1)
        return x * cos + mx.concatenate([-second, first], axis=-1) * sin


class Attend(nn.Module):
    """softmax(q k^T / sqrt(C)) v where H / K query heads share a key.

    q: (B, L, H, C); k, v: (B, L, K, C); mask: (B, 1, L, L), True where a query may read a key, or "causal".
    Returns the shape of q.
    """

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str) -> mx.array:
        q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
        out = scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
        return out.transpose(0, 2, 1, 3)


class Attention(nn.Module):
    """Causal grouped-query attention, with biases and norms of each head's queries and keys as configured."""

    def __init__(self, config: LanguageBodyConfig):
        super().__init__()
        dim, head_dim = config.hidden_size, config.head_dim
        self.head_dim = head_dim
        self.q_proj = Linear(dim, config.num_attention_heads * head_dim, bias=config.qkv_bias)
        self.k_proj = Linear(dim, config.num_key_value_heads * head_dim, bias=config.qkv_bias)
        self.v_proj = Linear(dim, config.num_key_value_heads * head_dim, bias=config.qkv_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(head_dim, config.rms_norm_eps)
        self.rotary_q = Rotary()
        self.rotary_k = Rotary()
        self.attend = Attend()
        self.o_proj = Linear(config.num_attention_heads * head_dim, dim, bias=False)

    def _heads(self, x: mx.array, norm: str | None = None) -> mx.array:
        heads = x.reshape(*x.shape[:2], -1, self.head_dim)
        return self[norm](heads) if norm in self else heads

    def __call__(self, x: mx.array, rotation: Rotation, mask: mx.array | str) -> mx.array:
        """x: (B, L, D), normalised; mask: as in `Attend`. Returns (B, L, D), before the residual add."""
        q = self.rotary_q(self._heads(self.q_proj(x), "q_norm"), rotation)
        k = self.rotary_k(self._heads(self.k_proj(x), "k_norm"), rotation)
        v = self._heads(self.v_proj(x))
        return self.o_proj(self.attend(q, k, v, mask).flatten(2))


class MLP(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))` (Shazeer, arXiv:2002.05202)."""

    def __init__(self, config: LanguageBodyConfig):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.act_fn = SiLU()
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.multiply = Multiply()
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(self.multiply(self.act_fn(self.gate_proj(x)), self.up_proj(x)))


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: LanguageBodyConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.attn_add = Add()
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.mlp_add = Add()

    def __call__(self, x: mx.array, rotation: Rotation, mask: mx.array | str) -> mx.array:
        x = self.attn_add(x, self.self_attn(self.input_layernorm(x), rotation, mask))
        return self.mlp_add(x, self.mlp(self.post_attention_layernorm(x)))


class LanguageBody(nn.Module):
    """Maps token ids to the last hidden state, normalised if the configuration says so."""

    def __init__(self, config: LanguageBodyConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = RotaryEmbedding(config.head_dim, config.rope_theta)
        self.layers = [DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        if config.final_norm:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, input_ids: mx.array, attention_mask: mx.array | None, dtype: mx.Dtype) -> mx.array:
        """input_ids: (B, L); attention_mask: (B, L), zero for padding on either side, or None.

        Returns (B, L, D). `dtype` is the dtype of all activations; narrower weights are upcast where they are used.
        Rows of padding are finite but meaningless.
        """
        x = self.embed_tokens(input_ids).astype(dtype)
        rotation = self.rotary_emb(input_ids.shape[1])
        mask = "causal" if attention_mask is None else _causal_mask(attention_mask)
        for layer in self.layers:
            x = layer(x, rotation, mask)
        return self.norm(x) if "norm" in self else x


def sanitize(
    weights: MutableMapping[str, mx.array], unused: Collection[str] = ()
) -> tuple[MutableMapping[str, mx.array], list[str]]:
    """Renames the weights of a published checkpoint; also returns the sorted names that it left out.

    It leaves out the vision tower and the output head, which text-to-image does not need, and the renamed weights in
    `unused`. Unknown names are returned unchanged, so that a strict loader reports them.
    """
    renamed, ignored = {}, []
    for name, array in weights.items():
        # published files use model., transformers since 4.52 model.language_model., and MLX language_model.model.
        ours = name.removeprefix("model.").removeprefix("language_model.").removeprefix("model.")
        if name.startswith(_NOT_NEEDED) or ours in unused:
            ignored.append(name)
        else:
            renamed[ours] = array
    return renamed, sorted(ignored)


def _causal_mask(attention_mask: mx.array) -> mx.array:
    """Combines a padding mask (B, L) with the causal mask: (B, 1, L, L), bool.

    A row of padding also reads itself, because the softmax over no key is NaN or not depending on the backend.
    """
    positions = mx.arange(attention_mask.shape[1])
    query, key = positions[:, None], positions[None, :]
    real = attention_mask.astype(mx.bool_)[:, None, None, :]
    return (key <= query) & real | (key == query)
