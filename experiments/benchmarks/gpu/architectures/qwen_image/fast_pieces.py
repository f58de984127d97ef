"""The fused kernels of the technique `fast` as pieces, and the operations that they replace."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx

from experiments.benchmarks.gpu.pieces import BYTES, KERNEL, Piece, normal
from experiments.benchmarks.gpu.shapes import Shape
from precision_lab.techniques.fast import kernels as fused
from precision_lab.techniques.fast.kernels import Chunk, Projected

EPS = 1e-6


def kernels(shape: Shape, tokens: int) -> Iterator[Piece]:
    """Every kernel on a stream of `tokens`. The kernel of attention's inputs needs both streams: only for the image."""
    d = shape.config.dim
    size = tokens * d
    x, product, mods, bias = (normal(s, 0.5) for s in ((1, tokens, d), (1, tokens, d), (1, 6 * d), (d,)))
    norm = (Chunk.SHIFT_1, Chunk.SCALE_1, EPS)
    yield Piece(
        *("layer norm and modulate", "norm", KERNEL, tokens, 8 * size, 2 * size * BYTES, x),
        lambda y, _: fused.norm_modulate(y, mods, *norm),
    )
    yield Piece(
        *("gated add", "gate", KERNEL, tokens, 3 * size, 3 * size * BYTES, x),
        lambda y, _: fused.gated_add(y, product, bias, mods, Chunk.GATE_1),
    )
    yield Piece(
        *("gated add, layer norm, modulate", "gate and norm", KERNEL, tokens, 11 * size, 4 * size * BYTES, x),
        lambda y, _: fused.gated_add_norm_modulate(y, product, bias, mods, Chunk.GATE_1, *norm)[1],
    )
    hidden, hidden_bias = normal((1, tokens, 4 * d)), normal((4 * d,))
    yield Piece(
        *("GELU", "gelu", KERNEL, tokens, 10 * 4 * size, 2 * 4 * size * BYTES, hidden),
        lambda y, _: fused.gelu(y, hidden_bias),
    )
    if tokens != shape.text_tokens:
        yield _joint(shape, tokens)


def _joint(shape: Shape, tokens: int) -> Piece:
    """Bias, RMS norm, RoPE and joining of q, k and v. The next bias is a view of the last queries, which chains it."""
    d, channels = shape.config.dim, shape.config.attention_head_dim
    txt, img = (_projected(length, d, channels) for length in (shape.text_tokens, tokens))
    joint = tokens + shape.text_tokens

    def step(bias: mx.array, _: int) -> mx.array:
        queries, *_ = fused.joint_qkv(txt, img._replace(bias=bias), channels, EPS)
        return queries.reshape(-1)[: 3 * d]

    flops, nbytes = 17 * joint * d, 6 * joint * d * BYTES + img.rotation.nbytes
    return Piece("RMS norm, RoPE, joining", "rope and join", KERNEL, tokens, flops, nbytes, img.bias, step)


def _projected(length: int, d: int, channels: int) -> Projected:
    rotation = mx.exp(1j * mx.random.normal((length, channels // 2))).astype(mx.complex64)
    mx.eval(rotation)
    return Projected(normal((1, length, 3 * d)), normal((3 * d,)), normal((channels,)), normal((channels,)), rotation)
