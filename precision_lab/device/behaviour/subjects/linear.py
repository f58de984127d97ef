"""Products: matmul with a matrix and with one row, addmm, and products with quantised weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from precision_lab.device.behaviour import products
from precision_lab.device.behaviour.bridge import DTYPES, Op, UnavailableError, on_mlx
from precision_lab.device.behaviour.finding import Finding
from precision_lab.device.behaviour.storage import Array, Storage
from precision_lab.device.behaviour.subjects.asking import ask

_DEPTH = 256
_COLUMNS = 64


@dataclass(frozen=True)
class Quantisation:
    """A mode of mx.quantized_matmul, with the packed word and scale that encode weights of exactly 1."""

    mode: str
    group: int
    bits: int
    word: int
    scale: float  # affine: the scale; other modes: the byte that encodes a scale of 1

    @property
    def name(self) -> str:
        return f"quantized_matmul {self.mode}" + (f" {self.bits}-bit" if self.mode == "affine" else "")


# the encoding of 1 is 0x38 in float8 e4m3, 2 in float4 e2m1, 127 as a power-of-two scale (OCP Microscaling Formats 1.0)
QUANTISATIONS = (
    Quantisation("affine", 64, 4, 0x11111111, 1.0),
    Quantisation("affine", 64, 8, 0x01010101, 1.0),
    Quantisation("mxfp4", 32, 4, 0x22222222, 127),
    Quantisation("mxfp8", 32, 8, 0x38383838, 127),
    Quantisation("nvfp4", 16, 4, 0x22222222, 0x38),
)


def findings(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    """Measures the width of factors and accumulator for each shape; for quantised weights, only of the accumulator."""
    matmul = on_mlx(lambda a, b: a @ b, storage)
    for op, rows in (("matmul", 64), ("matmul, one row", 1)):
        yield ask(op, storage, "input_bits", products.input_bits, matmul, storage, rng, rows)
        reduce = _rows_at_a_time(lambda x: matmul(x, np.ones((_DEPTH, _COLUMNS))), rows)
        yield ask(op, storage, "accumulator_bits", products.accumulator_bits, reduce, storage, _DEPTH, rng)
    if storage.bits < 24:
        addmm = on_mlx(mx.addmm, storage)
        yield ask("addmm", storage, "rounds_product", products.bias_rounding, addmm, storage)
    for kind in QUANTISATIONS:
        for rows, suffix in ((64, ""), (1, ", one row")):
            reduce = _rows_at_a_time(_quantised(kind, storage), rows)
            op = kind.name + suffix
            yield ask(op, storage, "accumulator_bits", products.accumulator_bits, reduce, storage, _DEPTH, rng, 64)


def _rows_at_a_time(reduce: Op, rows: int) -> Op:
    """Calls `reduce` with `rows` rows at a time: the number of rows determines MLX's kernel."""

    def call(x: Array) -> Array:
        return np.concatenate([reduce(part) for part in np.split(x, len(x) // rows)])

    return call


def _quantised(kind: Quantisation, storage: Storage) -> Op:
    """x @ W for a quantised W of ones; x: (n, _DEPTH), result: (n, _COLUMNS)."""
    settings: dict[str, Any] = {"group_size": kind.group, "bits": kind.bits, "mode": kind.mode}

    def multiply(x: mx.array) -> mx.array:
        weight = mx.full((_COLUMNS, _DEPTH * kind.bits // 32), kind.word, dtype=mx.uint32)
        dtype = DTYPES[storage.name] if kind.mode == "affine" else mx.uint8
        scales = mx.full((_COLUMNS, _DEPTH // kind.group), kind.scale, dtype=dtype)
        biases = mx.zeros_like(scales) if kind.mode == "affine" else None
        if not (mx.dequantize(weight, scales, biases, **settings) == 1).all():
            raise UnavailableError("the packed weights do not dequantise to 1: another layout than this probe's")
        return mx.quantized_matmul(x, weight, scales, biases, transpose=True, **settings)

    return on_mlx(multiply, storage)
