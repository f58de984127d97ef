"""Sums, means, softmax and norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import mlx.core as mx
import numpy as np

from precision_lab.device.behaviour import products, rounding, sums
from precision_lab.device.behaviour.bridge import Op, on_mlx
from precision_lab.device.behaviour.finding import Finding
from precision_lab.device.behaviour.interior import interior_bits
from precision_lab.device.behaviour.storage import Array, Storage
from precision_lab.device.behaviour.subjects.asking import ask

WIDTH = 3072  # width of the model's residual streams
_EPS = 1e-12
# float16 and bfloat16 must represent the count itself, so theirs are powers of two
_COUNTS = {"float32": 2**24 + 2**12, "bfloat16": 2**20, "float16": 2**15}
_GROWTH = (2**6, 2**8, 2**10, 2**12, 2**14, 2**16, 2**18, 2**20)


def findings(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    """Measures all reductions in one storage dtype."""
    yield from _sums(storage, rng)
    yield from _means(storage, rng)
    yield from _softmax(storage, rng)
    yield from _norms(storage, rng)


def _sums(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    total = on_mlx(mx.sum, storage)
    axes: dict[str, Op] = {
        "sum of rows": on_mlx(lambda x: x.sum(axis=-1), storage),
        "sum of columns": on_mlx(lambda x: x.T.sum(axis=0), storage),
        "sum of all": lambda x: np.array([total(row) for row in x]),
    }
    for op, reduce in axes.items():
        yield ask(op, storage, "accumulator_bits", products.accumulator_bits, reduce, storage, 1024, rng)
        if storage.name != "float16":
            yield ask(op, storage, "order", sums.order, reduce, 256, sizes={"length": 256})
    n = _COUNTS[storage.name]
    yield ask("sum of all", storage, "count", sums.count, total, storage, n, sizes={"length": n})
    for length in _GROWTH:
        sizes = {"length": length}
        yield ask("sum of all", storage, "error_growth", sums.error, total, storage, length, rng, sizes=sizes)


def _means(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    mean = on_mlx(lambda x: x.mean(axis=-1), storage)
    x = sums.uniform_rows(rng, storage, (2048, WIDTH))
    exact = x.mean(axis=1)
    sizes = {"width": WIDTH}
    yield ask("mean", storage, "interior_bits", interior_bits, mean, (x,), exact, exact, storage, sizes=sizes)
    yield ask("mean", storage, "divisor", sums.mean_divisor, mean, storage)


def _softmax(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    width = 4096
    # the logits differ by at most 7, so no probability is a subnormal float16
    x = storage.round(rng.uniform(-3.5, 3.5, (32, width)))
    p = np.exp(x)
    p /= p.sum(axis=1, keepdims=True)
    for op, precise in (("softmax", False), ("softmax, precise", True)):
        softmax = on_mlx(partial(mx.softmax, axis=-1, precise=precise), storage)
        sizes = {"width": width}
        yield ask(op, storage, "interior_bits", interior_bits, softmax, (x,), p, p, storage, sizes=sizes)
        yield ask(op, storage, "normaliser", sums.normaliser, softmax, storage, width, rng, sizes=sizes)


def composed_layer_norm(x: mx.array, weight: mx.array | None = None, bias: mx.array | None = None) -> mx.array:
    """LayerNorm composed of plain operations, as models without a fused kernel write it."""
    centred = x - x.mean(axis=-1, keepdims=True)
    normal = centred * mx.rsqrt(mx.square(centred).mean(axis=-1, keepdims=True) + _EPS)
    return normal if weight is None or bias is None else normal * weight + bias


def composed_rms_norm(x: mx.array, weight: mx.array | None = None) -> mx.array:
    """RMSNorm composed of plain operations."""
    normal = x * mx.rsqrt(mx.square(x).mean(axis=-1, keepdims=True) + _EPS)
    return normal if weight is None else normal * weight


def fast_layer_norm(x: mx.array, weight: mx.array | None = None, bias: mx.array | None = None) -> mx.array:
    """mx.fast.layer_norm with a negligible eps."""
    return mx.fast.layer_norm(x, weight, bias, _EPS)


def fast_rms_norm(x: mx.array, weight: mx.array | None = None) -> mx.array:
    """mx.fast.rms_norm with a negligible eps."""
    return mx.fast.rms_norm(x, weight, _EPS)


def _norms(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    plain = storage.round(rng.standard_normal((64, WIDTH)))
    massive = plain.copy()
    massive[:, rng.choice(WIDTH, 4, replace=False)] = storage.round(1000 * (1 + rng.random(4)))
    weight, bias = storage.round(0.5 + rng.random(WIDTH)), storage.round(rng.standard_normal(WIDTH))
    sizes = {"width": WIDTH}
    forms: tuple[tuple[str, bool, Callable[..., mx.array]], ...] = (
        ("fast.layer_norm", True, fast_layer_norm),
        ("fast.rms_norm", False, fast_rms_norm),
        ("layer_norm, plain ops", True, composed_layer_norm),
        ("rms_norm, plain ops", False, composed_rms_norm),
    )
    for op, centre, form in forms:
        norm = on_mlx(form, storage)
        for about, x in (("interior_bits", plain), ("massive_channels", massive)):
            exact, scale = _normalised(x, centre)
            yield ask(op, storage, about, interior_bits, norm, (x,), exact, scale, storage, sizes=sizes)
        exact, scale = _normalised(plain, centre)
        exact, scale = exact * weight + centre * bias, scale * weight + centre * np.abs(bias)
        inputs = (plain, weight, bias) if centre else (plain, weight)
        weighted = f"{op}, weighted"
        yield ask(weighted, storage, "interior_bits", interior_bits, norm, inputs, exact, scale, storage, sizes=sizes)
        if storage.bits < 24:
            yield ask(weighted, storage, "rounds", rounding.norm_rounding, norm, storage, rng, centre)


def _normalised(x: Array, centre: bool) -> tuple[Array, Array]:
    """The exact norm of each row, and the magnitude of its terms: (|x| + mean |x| if centred) / deviation."""
    mean = x.mean(axis=1, keepdims=True) if centre else np.zeros((len(x), 1))
    deviation = np.sqrt(((x - mean) ** 2).mean(axis=1, keepdims=True))
    terms = np.abs(x) + (np.abs(x).mean(axis=1, keepdims=True) if centre else 0.0)
    return (x - mean) / deviation, terms / deviation
