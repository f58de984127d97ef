"""Fused operations of a transformer block: one pass over memory each, fp32 inside, one rounding at the end.

On CUDA they are kernels of this package (`cuda`). Elsewhere, and for widths that a kernel does not support, they are
operations of MLX with the same result up to rounding. The operation that reads the product of a linear adds the bias:
the epilogue that MLX's addmm requests from cuBLASLt takes longer than the addition does here.

B batch, L tokens, D width, H heads, C channels a head; modulations are (B, 6 D): shift, scale and gate of attention,
then shift, scale and gate of the feed-forward, in the order of `img_mod` and `txt_mod`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx

from precision_lab.techniques.fast import cuda


class Chunk:
    """Offsets of a modulation's vectors, in units of D."""

    SHIFT_1, SCALE_1, GATE_1, SHIFT_2, SCALE_2, GATE_2 = range(6)


class Projected(NamedTuple):
    """One stream's input to attention.

    qkv: the products of q, k and v side by side (B, L, 3 D); bias: their biases (3 D,); q_norm, k_norm: the scales of
    the norms (C,); rotation: (L, C / 2) complex64.
    """

    qkv: mx.array
    bias: mx.array
    q_norm: mx.array
    k_norm: mx.array
    rotation: mx.array


def norm_modulate(x: mx.array, mods: mx.array, shift: int, scale: int, eps: float) -> mx.array:
    """`layer_norm(x) * (1 + scale) + shift`; x: (B, L, D), mods: (B, 6 D). Returns (B, L, D) in the dtype of x."""
    batch, length, dim = x.shape
    threads = cuda.vectors(x)
    if not cuda.takes(x) or threads > cuda.LARGEST_BLOCK:
        return _norm_modulate(x, mods, shift, scale, eps)
    (out,) = cuda.kernel("norm_modulate", ("x", "mods"), ("y",))(
        inputs=[x, mods],
        template=[("T", x.dtype), ("D", dim), ("SHIFT", shift), ("SCALE", scale), ("NANO", cuda.nano(eps))],
        grid=(threads * batch * length, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )
    return out


def gated_add(residual: mx.array, product: mx.array, bias: mx.array, mods: mx.array, gate: int) -> mx.array:
    """`residual + gate * (product + bias)`; residual and product: (B, L, D), bias: (D,), mods: (B, 6 D)."""
    if not cuda.takes(residual, product):
        return _gated_add(residual, product, bias, mods, gate)
    batch, length, dim = residual.shape
    columns = cuda.vectors(residual)
    (out,) = cuda.kernel("gated_add", ("residual", "product", "bias", "mods"), ("h",))(
        inputs=[residual, product, bias, mods],
        template=[("T", residual.dtype), ("D", dim), ("GATE", gate), ("ROWS", cuda.ROWS)],
        grid=(columns, -(-batch * length // cuda.ROWS), 1),
        threadgroup=(min(columns, 128), 1, 1),
        output_shapes=[residual.shape],
        output_dtypes=[residual.dtype],
    )
    return out


def gated_add_norm_modulate(
    residual: mx.array,
    product: mx.array,
    bias: mx.array,
    mods: mx.array,
    gate: int,
    shift: int,
    scale: int,
    eps: float,
) -> tuple[mx.array, mx.array]:
    """Returns `gated_add`, rounded to the dtype of the residual, and `norm_modulate` of that sum."""
    batch, length, dim = residual.shape
    threads = cuda.vectors(residual)
    if not cuda.takes(residual, product) or threads > cuda.LARGEST_BLOCK:
        h = _gated_add(residual, product, bias, mods, gate)
        return h, _norm_modulate(h, mods, shift, scale, eps)
    inputs = ("residual", "product", "bias", "mods")
    h, y = cuda.kernel("gated_add_norm_modulate", inputs, ("h", "y"))(
        inputs=[residual, product, bias, mods],
        template=[
            *(("T", residual.dtype), ("D", dim), ("GATE", gate)),
            *(("SHIFT", shift), ("SCALE", scale), ("NANO", cuda.nano(eps))),
        ],
        grid=(threads * batch * length, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[residual.shape] * 2,
        output_dtypes=[residual.dtype] * 2,
    )
    return h, y


def gelu(product: mx.array, bias: mx.array) -> mx.array:
    """GELU in its tanh form of `product + bias`; product: (B, L, D), bias: (D,)."""
    if not cuda.takes(product):
        return _gelu(product, bias)
    batch, length, dim = product.shape
    columns = cuda.vectors(product)
    (out,) = cuda.kernel("gelu", ("x", "bias"), ("y",))(
        inputs=[product, bias],
        template=[("T", product.dtype), ("D", dim), ("ROWS", cuda.ROWS)],
        grid=(columns, -(-batch * length // cuda.ROWS), 1),
        threadgroup=(min(columns, 256), 1, 1),
        output_shapes=[product.shape],
        output_dtypes=[product.dtype],
    )
    return out


def joint_qkv(txt: Projected, img: Projected, head_dim: int, eps: float) -> tuple[mx.array, mx.array, mx.array]:
    """Queries, keys and values of text and image tokens in one sequence, (B, T + L, H, C) each.

    Queries and keys are normalised (RMSNorm over C, with its scale) and rotated as complex pairs.
    """
    batch, length, dim = *img.qkv.shape[:2], img.qkv.shape[2] // 3
    threads = cuda.vectors(img.qkv) // 3
    lanes = threads * head_dim // dim
    whole = threads % cuda.WARP == 0 and threads <= cuda.LARGEST_BLOCK and lanes in (1, 2, 4, 8, 16, 32)
    if not cuda.takes(img.qkv, txt.qkv) or not whole:
        return _joint_qkv(txt, img, head_dim, eps)
    total = txt.qkv.shape[1] + length
    names = tuple(f"{stream}_{field}" for stream in ("txt", "img") for field in Projected._fields)
    arrays = [a.view(mx.float32) if a.dtype == mx.complex64 else a for a in (*txt, *img)]
    q, k, v = cuda.kernel("joint_qkv", names, ("q", "k", "v"))(
        inputs=arrays,
        template=[("T", img.qkv.dtype), ("D", dim), ("C", head_dim), ("NANO", cuda.nano(eps))],
        grid=(threads * batch * total, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[(batch, total, dim // head_dim, head_dim)] * 3,
        output_dtypes=[img.qkv.dtype] * 3,
    )
    return q, k, v


# --- operations of MLX -----------------------------------------------------------------------------------------------


def _chunk(mods: mx.array, index: int) -> mx.array:
    """One vector of the modulations, (B, 1, D) in fp32."""
    dim = mods.shape[-1] // 6
    return mods[:, None, index * dim : (index + 1) * dim].astype(mx.float32)


def _norm_modulate(x: mx.array, mods: mx.array, shift: int, scale: int, eps: float) -> mx.array:
    y = mx.fast.layer_norm(x.astype(mx.float32), None, None, eps)
    return (y * (1 + _chunk(mods, scale)) + _chunk(mods, shift)).astype(x.dtype)


def _gated_add(residual: mx.array, product: mx.array, bias: mx.array, mods: mx.array, gate: int) -> mx.array:
    update = product.astype(mx.float32) + bias.astype(mx.float32)
    return (residual.astype(mx.float32) + _chunk(mods, gate) * update).astype(residual.dtype)


def _gelu(product: mx.array, bias: mx.array) -> mx.array:
    y = product.astype(mx.float32) + bias.astype(mx.float32)
    inner = math.sqrt(2 / math.pi) * (y + 0.044715 * (y * y * y))
    return (0.5 * y * (1 + mx.tanh(inner))).astype(product.dtype)


def _joint_qkv(txt: Projected, img: Projected, head_dim: int, eps: float) -> tuple[mx.array, mx.array, mx.array]:
    def heads(stream: Projected) -> list[mx.array]:
        y = stream.qkv.astype(mx.float32) + stream.bias.astype(mx.float32)
        return [part.reshape(*part.shape[:2], -1, head_dim) for part in mx.split(y, 3, axis=-1)]

    def turned(x: mx.array, norm: mx.array, rotation: mx.array) -> mx.array:
        y = mx.fast.rms_norm(x, norm.astype(mx.float32), eps)
        return (y.view(mx.complex64) * rotation[:, None]).view(mx.float32)

    parts = []
    for stream in (txt, img):
        q, k, v = heads(stream)
        parts.append((turned(q, stream.q_norm, stream.rotation), turned(k, stream.k_norm, stream.rotation), v))
    q, k, v = (mx.concatenate(list(both), axis=1).astype(img.qkv.dtype) for both in zip(*parts, strict=True))
    return q, k, v
