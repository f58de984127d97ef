"""MLX's products with quantised weights whose values are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np

from precision_lab.device.behaviour import accuracy
from precision_lab.device.behaviour.accuracy import rounding_error, wrong_rows
from precision_lab.device.behaviour.bridge import DTYPES, Op, on_mlx
from precision_lab.device.behaviour.finding import Finding
from precision_lab.device.behaviour.quantised import MODES, Weights, one_term_rows
from precision_lab.device.behaviour.storage import Storage
from precision_lab.device.behaviour.subjects.asking import ask

_INNER, _OUTPUTS = 128, 32


def findings(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    """Measures each mode: the decoded values, each output at 4,096 rows, and the error against float64.

    The error is that of sums of positive terms, which grow: an accumulator in the format then shows.
    """
    for mode in MODES:
        op = f"quantized_matmul {mode.title}"
        weights = Weights.draw(mode, _OUTPUTS, _INNER, rng)
        decode = on_mlx(decoding(weights, storage), storage)
        yield ask(f"dequantize {mode.title}", storage, "every_row", wrong_rows, decode, (), weights.values)
        multiply = product(weights, storage)
        rows = 4096 if storage.name == "bfloat16" else 512
        x = one_term_rows(rows, _INNER)
        sizes = {"rows": rows, "inner": _INNER, "columns": _OUTPUTS}
        yield ask(op, storage, "every_row", wrong_rows, multiply, (x,), x @ weights.values.T, sizes=sizes)
        weights = Weights.draw(mode, _OUTPUTS, _INNER, rng, positive=True)
        multiply = product(weights, storage)
        for rows in (1, 64):
            x = storage.round(0.5 + rng.random((rows, _INNER)))
            exact = x @ weights.values.T
            # scale * codes + bias: the terms of both parts
            magnitude = x @ (weights.values.T + 2**mode.bits) if mode.name == "affine" else exact
            noise = accuracy.product_noise(_INNER)
            arguments = (multiply, (x,), exact, magnitude, storage, noise)
            sizes = {"rows": rows, "inner": _INNER, "columns": _OUTPUTS}
            yield ask(op, storage, "rounding_error", rounding_error, *arguments, sizes=sizes)


def stored(weights: Weights, storage: Storage) -> tuple[mx.array, mx.array, mx.array | None]:
    """The packed words, scales of 1, and for affine the biases that subtract the middle code."""
    shape = (*weights.values.shape[:-1], weights.values.shape[-1] // weights.mode.group)
    is_affine = weights.mode.name == "affine"
    scales = mx.full(shape, weights.mode.unit_scale, dtype=DTYPES[storage.name] if is_affine else mx.uint8)
    biases = mx.full(shape, -(2 ** (weights.mode.bits - 1)), dtype=scales.dtype) if is_affine else None
    return mx.array(weights.packed), scales, biases


def decoding(weights: Weights, storage: Storage) -> Callable[[], mx.array]:
    """mx.dequantize of the weights, in the format."""
    return lambda: mx.dequantize(*stored(weights, storage), **weights.settings, dtype=DTYPES[storage.name])


def product(weights: Weights, storage: Storage) -> Op:
    """x @ w.T by mx.quantized_matmul; x: (rows, inner)."""
    return on_mlx(
        lambda x: mx.quantized_matmul(x, *stored(weights, storage), transpose=True, **weights.settings), storage
    )
