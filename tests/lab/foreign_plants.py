"""More ports: mistakes that real ports make, and right ones that compute in another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

Change = Callable[..., Any]


def with_scale(factor: float) -> Change:
    """Attention with its scale times `factor`."""

    def wrong(module: nn.Module, q: mx.array, *rest: Any) -> mx.array:
        return module(q * factor, *rest)

    return wrong


def causal(module: nn.Module, q: mx.array, k: mx.array, v: mx.array, *rest: Any) -> mx.array:
    """Attention of (B, T, H, C) in which a token sees itself and those before it."""
    return _attention(q, k, v, mx.triu(mx.full((q.shape[1], k.shape[1]), -1e9), k=1))


def in_plain_operations(module: nn.Module, q: mx.array, k: mx.array, v: mx.array, mask: Any = None) -> mx.array:
    """The same attention, with its softmax in fp32 and its products in the dtype of its inputs."""
    return _attention(q, k, v, mx.zeros((1, 1)) if mask is None else mx.where(mask, 0.0, -1e9))


def _attention(q: mx.array, k: mx.array, v: mx.array, bias: mx.array) -> mx.array:
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = ((q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)).astype(mx.float32)
    weights = mx.softmax(scores + bias, axis=-1).astype(q.dtype)
    return (weights @ v).transpose(0, 2, 1, 3)


def heads_swapped(module: nn.Module, q: mx.array, k: mx.array, v: mx.array, *rest: Any) -> mx.array:
    """The values of another head."""
    return module(q, k, v[:, :, ::-1], *rest)


def over_tokens(module: nn.Module, x: mx.array) -> mx.array:
    """A norm over the tokens instead of the channels."""
    y = x.astype(mx.float32)
    return ((y - y.mean(1, keepdims=True)) * mx.rsqrt(y.var(1, keepdims=True) + 1e-6)).astype(x.dtype)


def over_heads(module: nn.Module, x: mx.array) -> mx.array:
    """An RMS norm of (B, T, H, C) over heads and channels."""
    y = x.astype(mx.float32)
    return (y * mx.rsqrt((y * y).mean((2, 3), keepdims=True) + 1e-6) * module.weight).astype(x.dtype)


def without_mean(module: nn.Module, x: mx.array) -> mx.array:
    """An RMS norm instead of a layer norm."""
    return mx.fast.rms_norm(x, None, 1e-6)


def unnormalised(module: nn.Module, x: mx.array) -> mx.array:
    """A layer norm without its division."""
    return x - x.mean(-1, keepdims=True)


def norm_in_plain_operations(module: nn.Module, x: mx.array) -> mx.array:
    """The same layer norm in operations of the dtype of x."""
    y = x - x.mean(-1, keepdims=True)
    return y * mx.rsqrt((y * y).mean(-1, keepdims=True) + 1e-6)


def unbiased(module: nn.Module, x: mx.array) -> mx.array:
    """A layer norm whose variance is divided by one less than the channels."""
    y = x.astype(mx.float32)
    return ((y - y.mean(-1, keepdims=True)) * mx.rsqrt(y.var(-1, keepdims=True, ddof=1) + 1e-6)).astype(x.dtype)


def rms_norm_with_eps(eps: float) -> Change:
    def wrong(module: nn.Module, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, module.weight, eps)

    return wrong


def quick_gelu(module: nn.Module, x: mx.array) -> mx.array:
    y = x.astype(mx.float32)
    return (y * mx.sigmoid(1.702 * y)).astype(x.dtype)


def silu(module: nn.Module, x: mx.array) -> mx.array:
    return nn.silu(x.astype(mx.float32)).astype(x.dtype)


def gelu_of_mlx(module: nn.Module, x: mx.array) -> mx.array:
    """The same GELU, in operations of the dtype of x."""
    return nn.gelu_approx(x)


def erf_gelu_of_mlx(module: nn.Module, x: mx.array) -> mx.array:
    return nn.gelu(x)


def silu_of_mlx(module: nn.Module, x: mx.array) -> mx.array:
    return nn.silu(x)


def sigmoid(module: nn.Module, x: mx.array) -> mx.array:
    return mx.sigmoid(x)


def first(module: nn.Module, x: mx.array, gate: mx.array) -> mx.array:
    """A feed-forward network without its gate."""
    return x


def milliseconds(module: nn.Module, timestep: mx.array) -> mx.array:
    """A timestep from 0 to 1000, scaled again."""
    return module(timestep * 1000)


def unscaled(module: nn.Module, timestep: mx.array) -> mx.array:
    return module(timestep / 1000)


def one_minus(module: nn.Module, timestep: mx.array) -> mx.array:
    return module(1 - timestep)


def twisted(module: nn.Module, x: mx.array, rotation: mx.array) -> mx.array:
    """The rotations of the axes in reverse order."""
    return module(x, rotation[..., ::-1])


def shifted(module: nn.Module, x: mx.array, rotation: mx.array) -> mx.array:
    """The rotation of the token before."""
    return module(x, mx.roll(rotation, 1, axis=0))


def unrotated(module: nn.Module, x: mx.array, rotation: mx.array) -> mx.array:
    return x


def rotated_in_real_numbers(module: nn.Module, x: mx.array, rotation: mx.array) -> mx.array:
    """The same rotation by cosines and sines."""
    cos, sin = mx.real(rotation)[:, None], mx.imag(rotation)[:, None]
    y = x.astype(mx.float32).reshape(*x.shape[:-1], -1, 2)
    a, b = y[..., 0], y[..., 1]
    return mx.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape).astype(x.dtype)


def gate_after_tanh(module: nn.Module, residual: mx.array, gate: mx.array, update: mx.array) -> mx.array:
    return module(residual, mx.tanh(gate), update)


def one_plus_gate(module: nn.Module, residual: mx.array, gate: mx.array, update: mx.array) -> mx.array:
    return module(residual, 1 + gate, update)


def in_bfloat16(module: nn.Module, *args: Any) -> Any:
    """The same operation, its result rounded to bfloat16."""
    y = module(*args)
    return y.astype(mx.bfloat16).astype(y.dtype)


def inputs_in_bfloat16(module: nn.Module, *args: Any) -> Any:
    return module(*(x.astype(mx.bfloat16).astype(x.dtype) if isinstance(x, mx.array) else x for x in args))


def in_float16(module: nn.Module, *args: Any) -> Any:
    y = module(*args)
    return y.astype(mx.float16).astype(y.dtype)


def negated(module: nn.Module, *args: Any) -> Any:
    return -module(*args)


def reversed_tokens(module: nn.Module, x: mx.array, *rest: Any) -> mx.array:
    return module(x, *rest)[:, ::-1]


def transposed(module: nn.Module, x: mx.array) -> mx.array:
    """A square linear with the transpose of its weight."""
    y = x.astype(mx.float32) @ module.weight.astype(mx.float32)
    return (y + module.bias.astype(mx.float32) if "bias" in module else y).astype(x.dtype)


def bias_twice(module: nn.Module, x: mx.array) -> mx.array:
    return module(x) + module.bias.astype(x.dtype)


def last_row_zero(module: nn.Module, x: mx.array) -> mx.array:
    """A weight whose last row was not loaded."""
    y = module(x)
    return mx.concatenate([y[..., :-1], mx.zeros_like(y[..., -1:])], axis=-1)


def in_float32(module: nn.Module, *args: Any) -> Any:
    """The same operation in fp32, its result in the dtype of the first input."""
    wide = (
        x.astype(mx.float32) if isinstance(x, mx.array) and mx.issubdtype(x.dtype, mx.floating) else x for x in args
    )
    return module(*wide).astype(args[0].dtype)


def in_parts(module: nn.Module, x: mx.array, *rest: Any) -> mx.array:
    """The same linear, token by token."""
    return mx.concatenate([module(x[:, at : at + 1], *rest) for at in range(x.shape[1])], axis=1)
