"""The fused kernels of the technique `fast` as pieces, and the operations that they replace."""

from __future__ import annotations

import mlx.core as mx

from experiments.benchmarks.gpu.pieces import BYTES, KERNEL, Piece, Pieces, normal
from experiments.benchmarks.gpu.shapes import Shape
from precision_lab.techniques.fast import kernels as fused
from precision_lab.techniques.fast.kernels import Kept, Projected, SharedChunk


def kernels(shape: Shape, tokens: int) -> Pieces:
    """Every kernel of a block in a step: on the target's tokens, with the keys and values of a prefix."""
    config = shape.config
    d, eps, size, wide = config.dim, config.eps, tokens * config.dim, tokens * config.hidden
    x, product = (normal((1, tokens, d), 0.5) for _ in range(2))
    mods = mx.random.normal((1, 4 * d)) * 0.5
    mx.eval(mods)
    yield Piece(
        *("layer norm and modulate", "norm", KERNEL, tokens, 7 * size, 2 * size * BYTES, x),
        lambda y, _: fused.norm_modulate(y, mods, None, SharedChunk.SCALE_1, eps),
    )
    yield Piece(
        *("gated add", "gate", KERNEL, tokens, 2 * size, 3 * size * BYTES, x),
        lambda y, _: fused.gated_add(y, product, None, mods, SharedChunk.GATE_2),
    )
    chunks = SharedChunk.GATE_1, None, SharedChunk.SCALE_2
    yield Piece(
        *("gated add, layer norm, modulate", "gate and norm", KERNEL, tokens, 9 * size, 4 * size * BYTES, x),
        lambda y, _: fused.gated_add_norm_modulate(y, product, None, mods, *chunks, eps)[1],
    )
    both = normal((1, tokens, 2 * config.hidden))
    yield Piece(
        *("SwiGLU", "swiglu", KERNEL, tokens, 5 * wide, 3 * wide * BYTES, both),
        lambda _, __: fused.swiglu(both),
        chained=False,
    )
    yield _qkv(shape, tokens)


def _qkv(shape: Shape, tokens: int) -> Piece:
    """RMS norm and RoPE of q and k, and the copies of v and the prefix. The first query is the next scale of q."""
    d, channels = shape.config.dim, shape.config.attention_head_dim
    heads = d // channels
    rotation = mx.exp(1j * mx.random.normal((tokens, channels // 2))).astype(mx.complex64)
    mx.eval(rotation)
    projected = Projected(normal((1, tokens, 3 * d)), None, normal((channels,)), normal((channels,)), rotation)
    kept = Kept(*(normal((1, shape.text_tokens, heads, channels)) for _ in range(2)))

    def step(scale: mx.array, _: int) -> mx.array:
        queries, *_ = fused.qkv(projected._replace(q_norm=scale), channels, shape.config.eps, kept)
        return queries.reshape(-1)[:channels]

    nbytes = (6 * tokens + 4 * shape.text_tokens) * d * BYTES + rotation.nbytes
    flops = 14 * tokens * d
    return Piece("RMS norm, RoPE, joining", "rope and join", KERNEL, tokens, flops, nbytes, projected.q_norm, step)
