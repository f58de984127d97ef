"""Products at the numbers of rows that people meet, with broadcast operands, and attention with masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import mlx.core as mx
import numpy as np

from precision_lab.device.behaviour import accuracy
from precision_lab.device.behaviour.accuracy import Mask, rounding_error, wrong_rows
from precision_lab.device.behaviour.bridge import on_mlx
from precision_lab.device.behaviour.finding import Finding
from precision_lab.device.behaviour.storage import Array, Storage
from precision_lab.device.behaviour.subjects.asking import ask

ROWS = (4096, 32_768, 40_000)  # 1024 x 1024 pixels, the range of a signed 16-bit integer, and beyond it
HEADS = (64, 96, 128)
_QUERIES, _KEYS = 64, 4096


def findings(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    """Measures products and attention at these shapes in one storage dtype."""
    yield from _rows(storage, rng)
    yield from _broadcast(storage, rng)
    yield from _attention(storage, rng)


def _rows(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    matmul = on_mlx(lambda a, b: a @ b, storage)
    for rows in ROWS:
        sizes = {"rows": rows, "inner": 64, "columns": 32}
        a, b = accuracy.signs(rng, (rows, 64)), accuracy.signs(rng, (64, 32))
        yield ask("matmul, many rows", storage, "every_row", wrong_rows, matmul, (a, b), a @ b, sizes=sizes)
        a, b = (storage.round(rng.standard_normal(shape)) for shape in ((rows, 64), (64, 32)))
        yield _error("matmul, many rows", storage, matmul, (a, b), sizes)


def _error(
    op: str, storage: Storage, matmul: Callable[..., Array], inputs: tuple[Array, Array], sizes: Mapping[str, int | str]
) -> Finding:
    a, b = inputs
    noise = accuracy.product_noise(a.shape[-1])
    exact, magnitude = a @ b, np.abs(a) @ np.abs(b)
    arguments = (matmul, inputs, exact, magnitude, storage, noise)
    return ask(op, storage, "rounding_error", rounding_error, *arguments, sizes=sizes)


def _broadcast(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    """A batch of 16 on one side, one operand for all of it on the other: the operand has a stride of 0."""
    for op, one, batch in (
        ("matmul, broadcast right", (16, 64, 64), (1, 64, 48)),
        ("matmul, broadcast left", (1, 64, 64), (16, 64, 48)),
        ("matmul, broadcast right, one row", (16, 1, 64), (1, 64, 48)),
    ):
        matmul = on_mlx(lambda a, b: mx.broadcast_to(a, (16, *a.shape[1:])) @ mx.broadcast_to(b, (16, 64, 48)), storage)
        inputs = storage.round(rng.standard_normal(one)), storage.round(rng.standard_normal(batch))
        sizes: dict[str, int | str] = {"batch": 16, "rows": one[1], "inner": 64, "columns": 48}
        yield _error(op, storage, matmul, inputs, sizes)


def _attention(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    """One head, 64 queries and 4,096 keys: without a mask, and with each kind. A mask allows half of the keys."""
    for channels in HEADS:
        q, k, v = (storage.round(rng.standard_normal((1, 1, n, channels))) for n in (_QUERIES, _KEYS, _KEYS))
        scale = float(storage.round(channels**-0.5))
        noise = accuracy.attention_noise(q, k, scale)
        padded = np.broadcast_to(np.arange(_KEYS) < _KEYS * 3 // 4, (_QUERIES, _KEYS))
        scattered = rng.random((_QUERIES, _KEYS)) < 0.5
        causal = np.arange(_KEYS) <= np.arange(_QUERIES)[:, None] + (_KEYS - _QUERIES)
        masks: dict[str, Mask | None] = {"none": None, "boolean": scattered, "additive": padded, "causal": causal}
        for mask, allowed in masks.items():
            exact, magnitude = accuracy.exact_attention(q, k, v, scale, allowed)
            sizes: dict[str, int | str] = {"queries": _QUERIES, "keys": _KEYS, "head_dim": channels, "mask": mask}
            attend = on_mlx(_masked(mask, allowed, scale), storage)
            arguments = (attend, (q, k, v), exact, magnitude, storage, noise)
            yield ask("fast.sdpa, masks", storage, "rounding_error", rounding_error, *arguments, sizes=sizes)


def _masked(mask: str, allowed: Mask | None, scale: float) -> Callable[..., mx.array]:
    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        given: mx.array | str | None = None
        if mask == "causal":
            given = "causal"
        elif allowed is not None:
            given = mx.array(allowed)
            if mask == "additive":
                given = mx.where(given, mx.array(0, dtype=q.dtype), mx.array(-float("inf"), dtype=q.dtype))
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=given)

    return attend
