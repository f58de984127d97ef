"""Subnormals, overflow and NaN in each operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import mlx.core as mx
import numpy as np

from precision_lab.device.behaviour import nans, ranges
from precision_lab.device.behaviour.bridge import DTYPES, on_mlx
from precision_lab.device.behaviour.finding import Finding
from precision_lab.device.behaviour.storage import FLOAT32, Array, Storage
from precision_lab.device.behaviour.subjects.asking import ask


def findings(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    """Measures the behaviour of operations at the limits of one storage dtype's range."""
    yield from _subnormals(storage, rng)
    yield from _overflow(storage)
    yield from _nans(storage)


def _subnormals(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    count = 2 ** (storage.bits - 1)  # subnormals are k times the smallest one, with k < count
    tiny: Array = storage.smallest_subnormal * rng.integers(1, count, (64, 64)).astype(np.float64)
    normal: Array = storage.smallest_normal * (1 + rng.integers(0, count // 2, (64, 64)) * 2 / count)
    alone: Array = tiny * np.eye(64)
    cases: list[tuple[str, Callable[..., mx.array], tuple[Array, ...], Array]] = [
        ("x + 0", lambda a: a + 0, (tiny,), tiny),
        ("x * 1", lambda a, b: a * b, (tiny, np.ones_like(tiny)), tiny),
        ("x * 0.5 from normal", lambda a: a * 0.5, (normal,), normal / 2),
        ("abs", mx.abs, (tiny,), tiny),
        ("max", lambda a: a.max(axis=-1), (tiny,), tiny.max(axis=1)),
        ("sum of rows", lambda a: a.sum(axis=-1), (alone,), alone.sum(axis=1)),
        ("matmul", lambda a, b: a @ b, (tiny, np.eye(64)), tiny),
        ("cast to float32", lambda a: a.astype(mx.float32), (tiny,), tiny),
    ]
    for op, function, inputs, exact in cases:
        yield ask(op, storage, "subnormals", ranges.subnormals, on_mlx(function, storage), inputs, exact)
    if storage is not FLOAT32:
        cast = on_mlx(lambda a: a.astype(DTYPES[storage.name]), FLOAT32)
        yield ask("cast from float32", storage, "subnormals", ranges.subnormals, cast, (tiny,), tiny)


def _overflow(storage: Storage) -> Iterator[Finding]:
    doubles: tuple[tuple[str, Callable[[mx.array], mx.array]], ...] = (
        ("x + x", lambda a: a + a),
        ("x * 2", lambda a: a * 2),
        ("matmul", lambda a: mx.diag(mx.diag(a) @ (2 * mx.eye(2, dtype=a.dtype)))),
    )
    for op, function in doubles:
        yield ask(op, storage, "overflow", ranges.overflow, on_mlx(function, storage), storage.max)
    if storage.name == "float16":
        cast = on_mlx(lambda a: a.astype(mx.float16), FLOAT32)
        yield ask("cast from float32", storage, "overflow", ranges.cast_overflow, cast, storage)
        yield from _inside(storage)
    if storage.name == "float32":
        fp8 = on_mlx(lambda a: mx.from_fp8(mx.to_fp8(a), mx.float32), storage)
        yield ask("to_fp8", storage, "overflow", ranges.overflow, fp8, 2.0**20)


def _inside(storage: Storage) -> Iterator[Finding]:
    """Overflow inside reductions, for float16 only: the other formats have the range of float32."""
    length = 256
    reductions: tuple[tuple[str, Callable[[mx.array], mx.array]], ...] = (
        ("matmul", lambda a: a @ mx.ones((length, 64), dtype=a.dtype)),
        ("matmul, one row", lambda a: mx.concatenate([row[None] @ mx.ones((length, 64), dtype=a.dtype) for row in a])),
        ("sum of rows", lambda a: a.sum(axis=-1)),
        ("mean", lambda a: a.mean(axis=-1)),
    )
    for op, function in reductions:
        yield ask(op, storage, "range_inside", ranges.range_inside, on_mlx(function, storage), storage, length)
    norms: tuple[tuple[str, Callable[[mx.array], mx.array]], ...] = (
        ("fast.layer_norm", lambda a: mx.fast.layer_norm(a, None, None, 1e-6)),
        ("fast.rms_norm", lambda a: mx.fast.rms_norm(a, None, 1e-6)),
        ("rms_norm, plain ops", lambda a: a * mx.rsqrt(mx.square(a).mean(axis=-1, keepdims=True) + 1e-6)),
    )
    for op, function in norms:
        yield ask(op, storage, "range_inside", ranges.square_inside, on_mlx(function, storage), storage)


def _nans(storage: Storage) -> Iterator[Finding]:
    functions: tuple[tuple[str, Callable[[mx.array], mx.array]], ...] = (
        ("max", lambda a: a.max(axis=-1)),
        ("min", lambda a: a.min(axis=-1)),
        ("max of abs", lambda a: mx.abs(a).max(axis=-1)),
        ("maximum with 0", lambda a: mx.maximum(a, 0)),
        ("minimum with 0", lambda a: mx.minimum(a, 0)),
        ("0 with maximum", lambda a: mx.maximum(mx.zeros_like(a), a)),
        ("clip", lambda a: mx.clip(a, -1, 1)),
        ("sum of rows", lambda a: a.sum(axis=-1)),
        ("softmax", lambda a: mx.softmax(a, axis=-1)),
        ("softmax, precise", lambda a: mx.softmax(a, axis=-1, precise=True)),
    )
    if storage.name == "float32":
        functions += (("to_fp8", lambda a: mx.from_fp8(mx.to_fp8(a), mx.float32)),)
    for op, function in functions:
        yield ask(op, storage, "nan", nans.propagation, on_mlx(function, storage))
    for op, precise in (("softmax", False), ("softmax, precise", True)):
        softmax = on_mlx(partial(mx.softmax, axis=-1, precise=precise), storage)
        yield ask(op, storage, "row_of_minus_inf", nans.masked_row, softmax)
