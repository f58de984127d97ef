"""The pieces of a block of Qwen-Image 1.x: linears with biases, and element-wise operations of both streams.

L tokens of a stream, D width, C channels a head, S tokens of both streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mlx.core as mx

from experiments.benchmarks.gpu.architectures.qwen_image import fast_pieces
from experiments.benchmarks.gpu.pieces import (
    BYTES,
    Piece,
    Pieces,
    addmm,
    attention,
    both_ways,
    first_columns,
    normal,
    products,
    rotating,
)
from experiments.benchmarks.gpu.shapes import Shape
from precision_lab.model.layers import GELUTanh, LayerNorm, RMSNorm
from precision_lab.model.modulation import GatedAdd
from precision_lab.model.qwen_image.block import Modulate
from precision_lab.model.rotary import Rotary


def groups(shape: Shape) -> Iterator[Callable[[], Pieces]]:
    """Functions that make the pieces of each size."""
    d = shape.config.dim
    sizes = (d, d), (d, 3 * d), (d, 4 * d), (4 * d, d)
    yield lambda: modulation(shape)
    for tokens in (*map(shape.tokens, shape.forward_sides), shape.text_tokens):
        yield lambda tokens=tokens: products(shape, tokens, sizes, biased=True)
        if tokens != shape.text_tokens:
            yield lambda tokens=tokens: attention(shape, tokens, tokens + shape.text_tokens)
        yield lambda tokens=tokens: elementwise(shape, tokens)
        yield lambda tokens=tokens: fast_pieces.kernels(shape, tokens)


def modulation(shape: Shape) -> Iterator[Piece]:
    """The modulation vectors of one stream's two adaLN: one row times a D x 6 D matrix."""
    d = shape.config.dim
    step = first_columns(addmm(rotating(shape, (6 * d, d)), normal((6 * d,), 0.02)), d)
    flops, nbytes = 12 * d * d, (7 * d + 6 * d * d) * BYTES
    yield Piece("modulation vectors", "modulation", "addmm", 1, flops, nbytes, normal((1, d)), step)


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
        yield from both_ways(name, kind, tokens, flops, nbytes, start, call)
