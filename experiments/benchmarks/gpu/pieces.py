"""The pieces of a block as MLX operations, each with its arithmetic and its bytes.

L tokens of a stream, D width, H heads, C channels a head, S tokens of both streams.

Arithmetic counts each multiplication, addition, division, root and exponential as one operation. Bytes are the memory
traffic if every input is read once and every output is written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from experiments.benchmarks.gpu.shapes import Shape
from precision_lab.model.layers import GELUTanh, LayerNorm, RMSNorm, scaled_dot_product_attention
from precision_lab.model.modulation import GatedAdd
from precision_lab.model.qwen_image.block import Modulate
from precision_lab.model.rotary import Rotary

BYTES = 2  # of a bfloat16
RING_BYTES = 256e6
"""Size of the copies between which weights rotate: five times an H100's cache, so that they come from memory."""

OPS, COMPILED, KERNEL = "eager", "mx.compile", "fast kernel"

Step = Callable[[mx.array, int], mx.array]


@dataclass(frozen=True)
class Piece:
    """One operation of a block.

    `step(x, i)` gives the i-th result from x, which is `start` at first. Where the result (or a view of it) has the
    shape of x it becomes the next x, so that each waits for the one before, as in a block (`chained`); else all start
    from `start` and may overlap on the device.
    """

    name: str
    kind: str
    way: str
    tokens: int
    flops: float
    nbytes: float
    start: mx.array
    step: Step
    chained: bool = True


def ceilings(shape: Shape) -> Iterator[Piece]:
    """The ceilings of the device: a large square product, and a unary operation that streams through memory."""
    n = shape.big_matmul
    x, w = normal((n, n)), normal((n, n), n**-0.5)
    yield Piece("square product", "ceiling", OPS, n, 2 * n**3, 3 * n * n * BYTES, x, lambda y, _: y @ w)
    big = normal((shape.copy_elements // 1024, 1024))
    yield Piece("copy", "ceiling", OPS, 0, 0, 2 * big.nbytes, big, lambda y, _: -y)


def products(shape: Shape, tokens: int) -> Iterator[Piece]:
    """The linears of a block: as x W^T, as x W^T + b, and as one addmm, which is what nn.Linear calls."""
    d = shape.config.dim
    for k, n in ((d, d), (d, 3 * d), (d, 4 * d), (4 * d, d)):
        x = normal((tokens, k))
        count = max(2, math.ceil(RING_BYTES / (n * k * BYTES))) if shape.name == "full" else 2
        ring = [normal((n, k), k**-0.5) for _ in range(count)]
        bias = normal((n,), 0.02)
        flops, nbytes = 2 * tokens * n * k, (tokens * k + n * k + tokens * n) * BYTES
        steps = {"matmul": _matmul(ring), "matmul + bias": _matmul_bias(ring, bias), "addmm": _addmm(ring, bias)}
        for way, product in steps.items():
            step = _first_columns(product, k) if n >= k else product
            name = f"product {k} to {n}"
            if n >= k or way == "matmul":
                yield Piece(name, "product", way, tokens, flops, nbytes, x, step, chained=n >= k)
            else:
                yield Piece(name, "product", way, tokens, flops, nbytes, bias, _through_bias(way, x, ring))


def modulation(shape: Shape) -> Iterator[Piece]:
    """The modulation vectors of one stream's two adaLN: one row times a D x 6 D matrix."""
    d = shape.config.dim
    count = max(2, math.ceil(RING_BYTES / (6 * d * d * BYTES))) if shape.name == "full" else 2
    ring = [normal((6 * d, d), d**-0.5) for _ in range(count)]
    step = _first_columns(_addmm(ring, normal((6 * d,), 0.02)), d)
    flops, nbytes = 12 * d * d, (7 * d + 6 * d * d) * BYTES
    yield Piece("modulation vectors", "modulation", "addmm", 1, flops, nbytes, normal((1, d)), step)


def attention(shape: Shape, tokens: int) -> Iterator[Piece]:
    """Scaled dot-product attention over all tokens of both streams; the output is the next query."""
    heads, channels = shape.config.num_attention_heads, shape.config.attention_head_dim
    joint = tokens + shape.text_tokens
    k, v = (normal((1, heads, joint, channels)) for _ in range(2))
    flops = 4 * heads * joint * joint * channels
    nbytes = 4 * heads * joint * channels * BYTES

    def step(q: mx.array, _: int) -> mx.array:
        return scaled_dot_product_attention(q, k, v, scale=channels**-0.5)

    yield Piece("attention", "attention", OPS, tokens, flops, nbytes, normal(k.shape), step)


def elementwise(shape: Shape, tokens: int) -> Iterator[Piece]:
    """The memory-bound pieces, from the model's own modules, eager and compiled."""
    d, heads = shape.config.dim, shape.config.num_attention_heads
    channels, joint = shape.config.attention_head_dim, tokens + shape.text_tokens
    x, update = normal((1, tokens, d)), normal((1, tokens, d))
    shift, scale, gate = (normal((1, d), 0.1) for _ in range(3))
    hidden = normal((1, tokens, 4 * d))
    q = normal((1, tokens, heads, channels))
    rotation = mx.exp(1j * mx.random.normal((tokens, channels // 2))).astype(mx.complex64)
    norm, modulate, add, gelu, rms, rotary = (
        LayerNorm(),
        Modulate(),
        GatedAdd(),
        GELUTanh(),
        RMSNorm(channels),
        Rotary(),
    )
    rms.set_dtype(mx.bfloat16)
    text = normal((1, shape.text_tokens, heads, channels))
    mx.eval(rotation, rms.parameters())
    size = tokens * d
    definitions: tuple[tuple[str, str, float, float, mx.array, Callable[[mx.array], mx.array]], ...] = (
        ("layer norm and modulate", "norm", 8 * size, 2 * size * BYTES, x, lambda y: modulate(norm(y), shift, scale)),
        ("gated add", "gate", 2 * size, 3 * size * BYTES, x, lambda y: add(y, gate, update)),
        ("GELU", "gelu", 9 * 4 * size, 2 * 4 * size * BYTES, hidden, gelu),
        (
            *("RMS norm and RoPE", "rope", 7 * size, 2 * size * BYTES + rotation.nbytes),
            *(q, lambda y: rotary(rms(y), rotation)),
        ),
        (
            *("joining the streams", "join", 0, 2 * joint * d * BYTES),
            *(q, lambda y: mx.concatenate([text, y], axis=1)[:, -tokens:]),
        ),
    )
    for name, kind, flops, nbytes, start, call in definitions:
        ways: dict[str, Callable[[mx.array], mx.array]] = {OPS: call}
        if kind != "join":
            ways[COMPILED] = mx.compile(call)
        for way, function in ways.items():
            yield Piece(name, kind, way, tokens, flops, nbytes, start, _without_index(function))


def _without_index(function: Callable[[mx.array], mx.array]) -> Step:
    return lambda x, _: function(x)


def _matmul(ring: list[mx.array]) -> Step:
    return lambda x, i: x @ ring[i % len(ring)].T


def _matmul_bias(ring: list[mx.array], bias: mx.array) -> Step:
    return lambda x, i: x @ ring[i % len(ring)].T + bias


def _addmm(ring: list[mx.array], bias: mx.array) -> Step:
    return lambda x, i: mx.addmm(bias, x, ring[i % len(ring)].T)


def _through_bias(way: str, x: mx.array, ring: list[mx.array]) -> Step:
    """A product too narrow to be the next factor: its first row becomes the next bias."""
    make = _addmm if way == "addmm" else _matmul_bias
    return lambda bias, i: make(ring, bias)(x, i)[0]


def _first_columns(product: Step, k: int) -> Step:
    """The first k columns of the result as a view, whose rows the next product reads in place."""
    return lambda x, i: product(x, i)[..., :k]


def normal(shape: tuple[int, ...], scale: float = 1.0) -> Any:
    """An evaluated bfloat16 array."""
    made = mx.random.normal(shape, mx.bfloat16, scale=scale)
    mx.eval(made)
    return made
