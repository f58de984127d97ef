"""Layers shared by the text encoder, the transformer and the VAE.

Element-wise functions are evaluated in fp32 and rounded once to the dtype of their input, like PyTorch's kernels.
Composed in bf16, they would round after every step. With fp32 input the casts are no-ops.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn


def on_cpu() -> bool:
    """Whether operations run on the CPU, which has no fused kernels and no 16-bit BLAS."""
    return mx.default_device().type == mx.DeviceType.cpu


class Sequential(nn.Module):
    """Layers called one after another, named "0", "1", ... as in the published checkpoints.

    `mlx.nn.Sequential` would insert a segment `layers` into every name. Integers are accepted as keys because MLX's
    tree functions turn numbered names into lists.
    """

    def __init__(self, *layers: nn.Module):
        super().__init__()
        for index, layer in enumerate(layers):
            self[index] = layer

    def __getitem__(self, key: str | int) -> Any:
        return super().__getitem__(str(key))

    def __setitem__(self, key: str | int, value: Any) -> None:
        super().__setitem__(str(key), value)

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.children().values():
            x = layer(x)
        return x


class Linear(nn.Linear):
    """`x @ weight.T + bias`, products summed in fp32 and rounded once to the dtype of x.

    On the GPU, MLX already does this. On the CPU it would compute a 16-bit product in plain loops, much slower than
    BLAS, so the operands are cast to fp32 first.
    """

    def __call__(self, x: mx.array) -> mx.array:
        if not on_cpu():
            return super().__call__(x)
        y = x.astype(mx.float32) @ self.weight.astype(mx.float32).T
        return (y + self.bias.astype(mx.float32) if "bias" in self else y).astype(x.dtype)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis without scale and shift; statistics in fp32, output in the dtype of x."""

    def __init__(self, eps: float = 1e-6):
        super().__init__()
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.layer_norm(x, None, None, self.eps)


class RMSNorm(nn.Module):
    """RMSNorm over the last axis with a scale: `x / sqrt(mean(x^2) + eps) * weight`.

    The variance is fp32 and the normalised value is rounded to the dtype of x before the scale.
    """

    def __init__(self, dims: int, eps: float = 1e-6):
        super().__init__()
        self.weight = mx.ones((dims,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight, self.eps)


class Add(nn.Module):
    """`residual + update`."""

    def __call__(self, residual: mx.array, update: mx.array) -> mx.array:
        return residual + update


class Multiply(nn.Module):
    """`a * b`."""

    def __call__(self, a: mx.array, b: mx.array) -> mx.array:
        return a * b


class SiLU(nn.Module):
    """`x * sigmoid(x)`, computed in fp32 and rounded to the dtype of x."""

    def __call__(self, x: mx.array) -> mx.array:
        return nn.silu(x.astype(mx.float32)).astype(x.dtype)


class Tanh(nn.Module):
    """`tanh(x)`, computed in fp32 and rounded to the dtype of x."""

    def __call__(self, x: mx.array) -> mx.array:
        return mx.tanh(x.astype(mx.float32)).astype(x.dtype)


class GELUTanh(nn.Module):
    """The tanh approximation of GELU (Hendrycks and Gimpel, arXiv:1606.08415), computed in fp32.

    The result has the dtype of x.
    """

    def __call__(self, x: mx.array) -> mx.array:
        y = x.astype(mx.float32)
        # y * y * y, because MLX evaluates y**3 with pow
        inner = math.sqrt(2 / math.pi) * (y + 0.044715 * (y * y * y))
        return (0.5 * y * (1 + mx.tanh(inner))).astype(x.dtype)


def scaled_dot_product_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | str | None = None
) -> mx.array:
    """Attention with scale, scores and softmax in fp32 and the result in the dtype of q.

    q: (B, H, Lq, D); k, v: (B, Hkv, Lk, D) with H a multiple of Hkv; mask: as in `mx.fast`. Returns (B, H, Lq, D).

    The fused GPU kernels work like this, except that CUDA's kernel rounds the probabilities before it divides them by
    their sum (measured, experiments/device). The CPU has no fused kernel. Its fallback would round q * scale, scores
    and probabilities to the storage dtype, which no implementation of the model does, so the inputs are cast to fp32.
    """
    if on_cpu():
        out: Any = mx.fast.scaled_dot_product_attention(
            *(a.astype(mx.float32) for a in (q, k, v)), scale=scale, mask=mask
        )
        return out.astype(q.dtype)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
