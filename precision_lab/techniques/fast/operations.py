"""The fused operations as operations of MLX: the results of the kernels up to rounding.

They serve devices without CUDA, and arrays whose widths or dtypes the kernels do not support. Arguments are those of
the functions of the same names in `kernels`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from precision_lab.techniques.fast.kernels import Kept, Projected


def norm_modulate(
    x: mx.array, mods: mx.array, shift: int | None, scale: int, eps: float, prefix: mx.array | None = None
) -> mx.array:
    y = mx.fast.layer_norm(x.astype(mx.float32), None, None, eps) * (1 + _chunk(mods, scale, x, prefix))
    return (y if shift is None else y + _chunk(mods, shift, x, prefix)).astype(x.dtype)


def gated_add(
    residual: mx.array,
    product: mx.array,
    bias: mx.array | None,
    mods: mx.array,
    gate: int,
    prefix: mx.array | None = None,
    limit: int = 0,
) -> mx.array:
    total = residual.astype(mx.float32) + _chunk(mods, gate, residual, prefix) * _biased(product, bias)
    return (mx.clip(total, -limit, limit) if limit else total).astype(residual.dtype)


def gelu(product: mx.array, bias: mx.array) -> mx.array:
    y = _biased(product, bias)
    inner = math.sqrt(2 / math.pi) * (y + 0.044715 * (y * y * y))
    return (0.5 * y * (1 + mx.tanh(inner))).astype(product.dtype)


def swiglu(product: mx.array) -> mx.array:
    gate, up = mx.split(product.astype(mx.float32), 2, axis=-1)
    return (gate * mx.sigmoid(gate) * up).astype(product.dtype)


def joint_qkv(txt: Projected, img: Projected, head_dim: int, eps: float) -> tuple[mx.array, mx.array, mx.array]:
    both = zip(_heads(txt, head_dim, eps), _heads(img, head_dim, eps), strict=True)
    q, k, v = (mx.concatenate(list(parts), axis=1) for parts in both)
    return q, k, v


def qkv(x: Projected, head_dim: int, eps: float, kept: Kept | None = None) -> tuple[mx.array, mx.array, mx.array]:
    q, k, v = _heads(x, head_dim, eps)
    if kept is None:
        return q, k, v
    k, v = (mx.concatenate([old.astype(new.dtype), new], axis=1) for old, new in zip(kept, (k, v), strict=True))
    return q, k, v


def _chunk(mods: mx.array, index: int, x: mx.array, prefix: mx.array | None) -> mx.array:
    """One vector of the modulations in fp32: (B, 1, D), or (B, L, D) with a prefix."""
    batch, length, dim = x.shape
    chunk = mods[:, index * dim : (index + 1) * dim].astype(mx.float32)
    if prefix is None:
        return chunk[:, None]
    row = mx.where(mx.arange(length) < prefix, batch, mx.arange(batch)[:, None])
    return chunk[row]


def _biased(product: mx.array, bias: mx.array | None) -> mx.array:
    y = product.astype(mx.float32)
    return y if bias is None else y + bias.astype(mx.float32)


def _heads(x: Projected, head_dim: int, eps: float) -> list[mx.array]:
    """Queries, keys and values of one stream, (B, L, H, C) each."""
    parts = mx.split(_biased(x.qkv, x.bias), 3, axis=-1)
    q, k, v = (part.reshape(*part.shape[:2], -1, head_dim) for part in parts)

    def turned(y: mx.array, norm: mx.array) -> mx.array:
        y = mx.fast.rms_norm(y, norm.astype(mx.float32), eps)
        return (y.view(mx.complex64) * x.rotation[:, None]).view(mx.float32)

    return [y.astype(x.qkv.dtype) for y in (turned(q, x.q_norm), turned(k, x.k_norm), v)]
