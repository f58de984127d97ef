"""Pieces of a block as MLX operations, each with its arithmetic and its bytes.

`pieces` of an architecture has `groups`, which gives functions that make the pieces of its block. Products and
attention, which all have, are made here. H heads, C channels a head.

Arithmetic counts each multiplication, addition, division, root and exponential as one operation. Bytes are the memory
traffic if every input is read once and every output is written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from experiments.benchmarks.gpu.shapes import Shape
from precision_lab.model.layers import scaled_dot_product_attention

BYTES = 2  # of a bfloat16
OPS, COMPILED, KERNEL = "eager", "mx.compile", "fast kernel"

Step = Callable[[mx.array, int], mx.array]
Call = Callable[[mx.array], mx.array]


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


Pieces = Iterator[Piece]


def ceilings(shape: Shape) -> Iterator[Piece]:
    """The ceilings of the device: a large square product, and a unary operation that streams through memory."""
    n = shape.big_matmul
    x, w = normal((n, n)), normal((n, n), n**-0.5)
    yield Piece("square product", "ceiling", OPS, n, 2 * n**3, 3 * n * n * BYTES, x, lambda y, _: y @ w)
    big = normal((shape.copy_elements // 1024, 1024))
    yield Piece("copy", "ceiling", OPS, 0, 0, 2 * big.nbytes, big, lambda y, _: -y)


def products(shape: Shape, tokens: int, sizes: Iterable[tuple[int, int]], biased: bool) -> Iterator[Piece]:
    """Linears of `sizes` (in, out): as x W^T and, if `biased`, as x W^T + b and as one addmm, which nn.Linear calls."""
    for k, n in sizes:
        x = normal((tokens, k))
        ring = rotating(shape, (n, k))
        bias = normal((n,), 0.02)
        flops, nbytes = 2 * tokens * n * k, (tokens * k + n * k + tokens * n) * BYTES
        steps = {"matmul": _matmul(ring)}
        if biased:
            steps |= {"matmul + bias": _matmul_bias(ring, bias), "addmm": addmm(ring, bias)}
        for way, product in steps.items():
            step = first_columns(product, k) if n >= k else product
            name = f"product {k} to {n}"
            if n >= k or way == "matmul":
                yield Piece(name, "product", way, tokens, flops, nbytes, x, step, chained=n >= k)
            else:
                yield Piece(name, "product", way, tokens, flops, nbytes, bias, _through_bias(way, x, ring))


def attention(shape: Shape, tokens: int, queries: int) -> Iterator[Piece]:
    """Scaled dot-product attention of `queries` over the tokens of image and text; the output is the next query."""
    heads, channels = shape.config.num_attention_heads, shape.config.attention_head_dim
    joint = tokens + shape.text_tokens
    k, v = (normal((1, heads, joint, channels)) for _ in range(2))
    flops = 4 * heads * queries * joint * channels
    nbytes = 2 * heads * (queries + joint) * channels * BYTES

    def step(q: mx.array, _: int) -> mx.array:
        return scaled_dot_product_attention(q, k, v, scale=channels**-0.5)

    q = normal((1, heads, queries, channels))
    yield Piece("attention", "attention", OPS, tokens, flops, nbytes, q, step)


def both_ways(name: str, kind: str, tokens: int, flops: float, nbytes: float, start: mx.array, call: Call) -> Pieces:
    """An element-wise piece, eager and compiled; what only moves data has nothing to compile."""
    ways = {OPS: call} if not flops else {OPS: call, COMPILED: mx.compile(call)}
    for way, function in ways.items():
        yield Piece(name, kind, way, tokens, flops, nbytes, start, _without_index(function))


def rotating(shape: Shape, size: tuple[int, int]) -> list[mx.array]:
    """Weights (out, in) that together exceed the device's caches."""
    n, k = size
    return [normal(size, k**-0.5) for _ in range(max(2, math.ceil(shape.ring_bytes / (n * k * BYTES))))]


def _without_index(function: Call) -> Step:
    return lambda x, _: function(x)


def _matmul(ring: list[mx.array]) -> Step:
    return lambda x, i: x @ ring[i % len(ring)].T


def _matmul_bias(ring: list[mx.array], bias: mx.array) -> Step:
    return lambda x, i: x @ ring[i % len(ring)].T + bias


def addmm(ring: list[mx.array], bias: mx.array) -> Step:
    return lambda x, i: mx.addmm(bias, x, ring[i % len(ring)].T)


def _through_bias(way: str, x: mx.array, ring: list[mx.array]) -> Step:
    """A product too narrow to be the next factor: its first row becomes the next bias."""
    make = addmm if way == "addmm" else _matmul_bias
    return lambda bias, i: make(ring, bias)(x, i)[0]


def first_columns(product: Step, k: int) -> Step:
    """The first k columns of the result as a view, whose rows the next product reads in place."""
    return lambda x, i: product(x, i)[..., :k]


def normal(shape: tuple[int, ...], scale: float = 1.0) -> Any:
    """An evaluated bfloat16 array."""
    made = mx.random.normal(shape, mx.bfloat16, scale=scale)
    mx.eval(made)
    return made
