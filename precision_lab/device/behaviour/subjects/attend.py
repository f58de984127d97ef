"""Attention: mx.fast's, at sizes for which it chooses different kernels, and one composed of plain operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np

from precision_lab.device.behaviour import attention
from precision_lab.device.behaviour.attention import Attention, Shape
from precision_lab.device.behaviour.bridge import on_mlx
from precision_lab.device.behaviour.finding import Finding
from precision_lab.device.behaviour.storage import Storage
from precision_lab.device.behaviour.subjects.asking import ask

CHANNELS = (64, 128, 192, 256)
LENGTHS = ((1, 512), (16, 512), (256, 256))  # queries, keys: a decoding step, a few queries, an image


def plain_attention(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """softmax(scale q k^T) v as separate operations in the dtype of q, with a precise softmax."""
    return mx.softmax((q * scale) @ k.swapaxes(-1, -2), axis=-1, precise=True) @ v


def fast_attention(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """mx.fast.scaled_dot_product_attention; MLX chooses the kernel (fused or not)."""
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)


def findings(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    """Measures the interior bits for every shape and, for 16-bit formats, which intermediates are rounded."""
    routes = [("fast.sdpa", fast_attention, Shape(q, k, c)) for c in CHANNELS for q, k in LENGTHS]
    routes.append(("attention, plain ops", plain_attention, Shape(256, 256, 128)))
    for op, function, shape in routes:
        attend = _in_numpy(function, storage)
        sizes = {"queries": shape.queries, "keys": shape.keys, "head_dim": shape.channels}
        yield ask(op, storage, "interior_bits", attention.attention_bits, attend, storage, shape, rng, sizes=sizes)
        if storage.bits < 24:
            yield ask(op, storage, "rounds", attention.rounding_places, attend, storage, shape, sizes=sizes)


def _in_numpy(function: Callable[..., mx.array], storage: Storage) -> Attention:
    return lambda q, k, v, scale: on_mlx(lambda *a: function(*a, scale), storage)(q, k, v)
