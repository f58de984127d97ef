"""Fused operations of a transformer block: one pass over memory each, fp32 inside, one rounding at the end.

On CUDA they are kernels of this package (`cuda`). Elsewhere, and for widths that a kernel does not support, they are
operations of MLX with the same result up to rounding (`operations`). The operation that reads the product of a linear
adds the bias, if there is one: the epilogue that MLX's addmm requests from cuBLASLt takes longer than the addition does
here.

B batch, L tokens, D width, H heads, C channels a head, P tokens of a prefix.

Modulations are (B, K D): K vectors for each sample, addressed by their offsets in units of D. With a `prefix`, the
number of tokens at the beginning of each sample as an array (1,) of int32, modulations are (B + 1, K D), and the last
row is that of these tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from precision_lab.techniques.fast import cuda, operations
from precision_lab.techniques.fast.cuda import Template


class Chunk:
    """Offsets in a modulation of 1.x: attention's vectors, then those of the feed-forward."""

    SHIFT_1, SCALE_1, GATE_1, SHIFT_2, SCALE_2, GATE_2 = range(6)


class SharedChunk:
    """Offsets in the modulation of 2.1, which has no shifts."""

    SCALE_1, GATE_1, SCALE_2, GATE_2 = range(4)


class Projected(NamedTuple):
    """One stream's input to attention.

    qkv: the products of q, k and v side by side (B, L, 3 D); bias: their biases (3 D,), or None; q_norm, k_norm: the
    scales of the norms (C,); rotation: (L, C / 2) complex64.
    """

    qkv: mx.array
    bias: mx.array | None
    q_norm: mx.array
    k_norm: mx.array
    rotation: mx.array


class Kept(NamedTuple):
    """Keys and values of a prefix, (B, P, H, C) each; the dtypes may differ from those of the other tokens."""

    keys: mx.array
    values: mx.array


def norm_modulate(
    x: mx.array, mods: mx.array, shift: int | None, scale: int, eps: float, prefix: mx.array | None = None
) -> mx.array:
    """`layer_norm(x) * (1 + scale) + shift`, or without a shift; x: (B, L, D). Returns the shape and dtype of x."""
    if not cuda.takes(x) or cuda.vectors(x) > cuda.LARGEST_BLOCK:
        return operations.norm_modulate(x, mods, shift, scale, eps, prefix)
    (out,) = cuda.kernel("norm_modulate", ("x", "mods", "prefix"), ("y",))(
        inputs=[x, *_modulation(mods, prefix)],
        template=[*_common(x, mods, prefix), *_norm(shift, scale, eps)],
        **cuda.block_a_row(cuda.vectors(x), x.shape[0] * x.shape[1]),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )
    return out


def gated_add(
    residual: mx.array,
    product: mx.array,
    bias: mx.array | None,
    mods: mx.array,
    gate: int,
    prefix: mx.array | None = None,
    limit: int = 0,
) -> mx.array:
    """`residual + gate * (product + bias)`; residual and product: (B, L, D), bias: (D,) or None.

    The sum is clipped to +-limit, unless that is 0.
    """
    if not cuda.takes(residual, product):
        return operations.gated_add(residual, product, bias, mods, gate, prefix, limit)
    (out,) = cuda.kernel("gated_add", ("residual", "product", "bias", "mods", "prefix"), ("h",))(
        inputs=[residual, product, _or(bias, product), *_modulation(mods, prefix)],
        template=[*_common(residual, mods, prefix), *_gate(gate, bias), ("ROWS", cuda.ROWS), ("LIMIT", limit)],
        **cuda.element_wise(cuda.vectors(residual), residual.shape[0] * residual.shape[1], 128),
        output_shapes=[residual.shape],
        output_dtypes=[residual.dtype],
    )
    return out


def gated_add_norm_modulate(
    residual: mx.array,
    product: mx.array,
    bias: mx.array | None,
    mods: mx.array,
    gate: int,
    shift: int | None,
    scale: int,
    eps: float,
    prefix: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Returns `gated_add`, rounded to the dtype of the residual, and `norm_modulate` of that sum."""
    if not cuda.takes(residual, product) or cuda.vectors(residual) > cuda.LARGEST_BLOCK:
        h = operations.gated_add(residual, product, bias, mods, gate, prefix)
        return h, operations.norm_modulate(h, mods, shift, scale, eps, prefix)
    inputs = ("residual", "product", "bias", "mods", "prefix")
    h, y = cuda.kernel("gated_add_norm_modulate", inputs, ("h", "y"))(
        inputs=[residual, product, _or(bias, product), *_modulation(mods, prefix)],
        template=[*_common(residual, mods, prefix), *_gate(gate, bias), *_norm(shift, scale, eps)],
        **cuda.block_a_row(cuda.vectors(residual), residual.shape[0] * residual.shape[1]),
        output_shapes=[residual.shape] * 2,
        output_dtypes=[residual.dtype] * 2,
    )
    return h, y


def gelu(product: mx.array, bias: mx.array) -> mx.array:
    """GELU in its tanh form of `product + bias`; product: (B, L, D), bias: (D,)."""
    if not cuda.takes(product):
        return operations.gelu(product, bias)
    (out,) = cuda.kernel("gelu", ("x", "bias"), ("y",))(
        inputs=[product, bias],
        template=[("T", product.dtype), ("D", product.shape[2]), ("ROWS", cuda.ROWS)],
        **cuda.element_wise(cuda.vectors(product), product.shape[0] * product.shape[1], 256),
        output_shapes=[product.shape],
        output_dtypes=[product.dtype],
    )
    return out


def swiglu(product: mx.array) -> mx.array:
    """`silu(gate) * up`; product: gate and up side by side, (B, L, 2 D). Returns (B, L, D)."""
    if not cuda.takes(product, parts=2):
        return operations.swiglu(product)
    batch, length, width = product.shape
    (out,) = cuda.kernel("swiglu", ("x",), ("y",))(
        inputs=[product],
        template=[("T", product.dtype), ("D", width // 2), ("ROWS", cuda.ROWS)],
        **cuda.element_wise(cuda.vectors(product) // 2, batch * length, 256),
        output_shapes=[(batch, length, width // 2)],
        output_dtypes=[product.dtype],
    )
    return out


def joint_qkv(txt: Projected, img: Projected, head_dim: int, eps: float) -> tuple[mx.array, mx.array, mx.array]:
    """Queries, keys and values of text and image tokens in one sequence, (B, T + L, H, C) each.

    Queries and keys are normalised (RMSNorm over C, with its scale) and rotated as complex pairs.
    """
    if not cuda.takes(img.qkv, txt.qkv, parts=3) or not _whole_heads(img.qkv, head_dim):
        return operations.joint_qkv(txt, img, head_dim, eps)
    batch, length, width = img.qkv.shape
    total = txt.qkv.shape[1] + length
    names = tuple(f"{stream}_{field}" for stream in ("txt", "img") for field in Projected._fields)
    q, k, v = cuda.kernel("joint_qkv", names, ("q", "k", "v"))(
        inputs=[*_arrays(txt), *_arrays(img)],
        template=_heads(img, head_dim, eps),
        **cuda.block_a_row(cuda.vectors(img.qkv) // 3, batch * total),
        output_shapes=[(batch, total, width // 3 // head_dim, head_dim)] * 3,
        output_dtypes=[img.qkv.dtype] * 3,
    )
    return q, k, v


def qkv(x: Projected, head_dim: int, eps: float, kept: Kept | None = None) -> tuple[mx.array, mx.array, mx.array]:
    """Queries (B, L, H, C), and keys and values (B, P + L, H, C) that begin with those of a prefix, if there is one.

    Queries and keys are computed as in `joint_qkv`.
    """
    if not cuda.takes(x.qkv, parts=3) or not _whole_heads(x.qkv, head_dim):
        return operations.qkv(x, head_dim, eps, kept)
    batch, length, width = x.qkv.shape
    total = length + (kept.keys.shape[1] if kept else 0)
    heads = (width // 3 // head_dim, head_dim)
    q, k, v = cuda.kernel("qkv", (*Projected._fields, *Kept._fields), ("q", "k", "v"))(
        inputs=[*_arrays(x), *(kept or (x.qkv, x.qkv))],
        template=[*_heads(x, head_dim, eps), ("KEPT", kept is not None)],
        **cuda.block_a_row(cuda.vectors(x.qkv) // 3, batch * total),
        output_shapes=[(batch, length, *heads), *[(batch, total, *heads)] * 2],
        output_dtypes=[x.qkv.dtype] * 3,
    )
    return q, k, v


def _or(array: mx.array | None, unread: mx.array) -> mx.array:
    """The array; where an operation is without it, any other, which the kernel does not read."""
    return unread if array is None else array


def _modulation(mods: mx.array, prefix: mx.array | None) -> tuple[mx.array, mx.array]:
    return mods, _or(prefix, mods)


def _arrays(x: Projected) -> list[mx.array]:
    return [x.qkv, _or(x.bias, x.qkv), x.q_norm, x.k_norm, x.rotation.view(mx.float32)]


def _common(x: mx.array, mods: mx.array, prefix: mx.array | None) -> Template:
    dim = x.shape[-1]
    return [("T", x.dtype), ("D", dim), ("CHUNKS", mods.shape[-1] // dim), ("PREFIX", prefix is not None)]


def _norm(shift: int | None, scale: int, eps: float) -> Template:
    return [("SHIFTED", shift is not None), ("SHIFT", shift or 0), ("SCALE", scale), ("NANO", cuda.nano(eps))]


def _gate(gate: int, bias: mx.array | None) -> Template:
    return [("GATE", gate), ("BIAS", bias is not None)]


def _heads(x: Projected, head_dim: int, eps: float) -> Template:
    dim = x.qkv.shape[-1] // 3
    return [
        *(("T", x.qkv.dtype), ("D", dim), ("C", head_dim)),
        *(("NANO", cuda.nano(eps)), ("BIAS", x.bias is not None)),
    ]


def _whole_heads(qkv: mx.array, head_dim: int) -> bool:
    """Whether a row is one block of threads, and each head a power of two of its lanes."""
    threads = cuda.vectors(qkv) // 3
    return threads <= cuda.LARGEST_BLOCK and threads * head_dim * 3 // qkv.shape[-1] in (1, 2, 4, 8, 16, 32)
