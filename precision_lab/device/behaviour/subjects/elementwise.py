"""Element-wise functions, RoPE, composed arithmetic, and mx.compile against eager execution."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.device.behaviour import compiled, rounding
from precision_lab.device.behaviour.bridge import on_mlx
from precision_lab.device.behaviour.finding import Finding
from precision_lab.device.behaviour.interior import interior_bits
from precision_lab.device.behaviour.storage import Array, Storage
from precision_lab.device.behaviour.subjects.asking import ask

_GELU = 0.044715  # Hendrycks and Gimpel, arXiv:1606.08415


def gelu_tanh(x: mx.array) -> mx.array:
    """The tanh form of GELU, composed of plain operations in the dtype of x."""
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + _GELU * (x * x * x))))


def modulate(x: mx.array, shift: mx.array, scale: mx.array) -> mx.array:
    """The modulation of AdaLN after a LayerNorm without weights."""
    return mx.fast.layer_norm(x, None, None, 1e-6) * (1 + scale) + shift


def multiply_add(a: mx.array, b: mx.array, c: mx.array) -> mx.array:
    """a * b + c, element by element."""
    return a * b + c


def findings(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    """Measures all element-wise functions in one storage dtype."""
    yield from _functions(storage, rng)
    yield from _rope(storage, rng)
    eager = on_mlx(multiply_add, storage)
    fused = on_mlx(mx.compile(multiply_add), storage)
    yield ask("a * b + c", storage, "product", rounding.multiply_add, eager, storage)
    yield ask("a * b + c, compiled", storage, "product", rounding.multiply_add, fused, storage)
    scalar = on_mlx(lambda x: x * _GELU, storage)
    yield ask("array * Python float", storage, "scalar", rounding.python_scalar, scalar, _GELU, storage)
    yield from _compiled(storage, rng)


def _functions(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    x = storage.round(rng.uniform(-4, 4, 2**15))
    one = np.ones_like(x)
    tanh = np.tanh(math.sqrt(2 / math.pi) * (x + _GELU * x**3))
    gelu, gelu_scale = 0.5 * x * (1 + tanh), 0.5 * np.abs(x) * (1 + np.abs(tanh))
    sigmoid = 1 / (1 + np.exp(-x))
    functions: tuple[tuple[str, Callable[[mx.array], mx.array], Array, Array], ...] = (
        ("exp", mx.exp, np.exp(x), np.exp(x)),
        ("tanh", mx.tanh, np.tanh(x), one),
        ("sigmoid", mx.sigmoid, sigmoid, sigmoid),
        ("nn.silu", nn.silu, x * sigmoid, np.abs(x) * sigmoid),
        ("nn.gelu_approx", nn.gelu_approx, gelu, gelu_scale),
        ("tanh GELU, plain ops", gelu_tanh, gelu, gelu_scale),
    )
    for op, function, exact, scale in functions:
        yield ask(op, storage, "interior_bits", interior_bits, on_mlx(function, storage), (x,), exact, scale, storage)


def _rope(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    """RoPE rotates channels (2i, 2i + 1) at position n by the angle n / base^(2i / d); RoFormer, arXiv:2104.09864."""
    dims, base, length = 128, 10_000.0, 16
    x = storage.round(rng.standard_normal((1, 8, length, dims)))
    for about, first in (("interior_bits", 0), ("far_positions", 4096)):
        turn = partial(mx.fast.rope, dims=dims, traditional=True, base=base, scale=1.0, offset=first)
        rope = on_mlx(turn, storage)
        angle = np.arange(first, first + length)[:, None] * base ** (-np.arange(0, dims, 2) / dims)
        cos, sin = np.cos(angle), np.sin(angle)
        even, odd = x[..., ::2], x[..., 1::2]
        exact = np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)
        scale = np.repeat(np.abs(even) + np.abs(odd), 2, axis=-1)
        sizes = {"first_position": first, "positions": length}
        yield ask("fast.rope", storage, about, interior_bits, rope, (x,), exact, scale, storage, sizes=sizes)


def _compiled(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    x = storage.round(2 * rng.standard_normal((32, 1024)))
    shift, scale = (storage.round(rng.standard_normal(1024)) for _ in range(2))
    forms: tuple[tuple[str, Callable[..., mx.array], tuple[Array, ...]], ...] = (
        ("tanh GELU", gelu_tanh, (x,)),
        ("layer_norm and modulate", modulate, (x, shift, scale)),
    )
    for op, form, inputs in forms:
        eager, other = on_mlx(form, storage), on_mlx(mx.compile(form), storage)
        yield ask(op, storage, "compiled", compiled.difference, eager, other, inputs, storage)
