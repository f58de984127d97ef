"""The pieces of a block of Qwen-Image-2.1 in a generation's step: the target's tokens, and the keys of a prefix.

L tokens of the target, D width, H heads, C channels a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mlx.core as mx

from experiments.benchmarks.gpu.architectures.qwen_image_21 import fast_pieces
from experiments.benchmarks.gpu.architectures.qwen_image_21.recipes import packed_sizes, plain_sizes
from experiments.benchmarks.gpu.pieces import BYTES, Pieces, attention, both_ways, normal, products
from experiments.benchmarks.gpu.shapes import Shape
from precision_lab.model.layers import LayerNorm, Multiply, RMSNorm, SiLU, Tanh
from precision_lab.model.modulation import GatedAdd
from precision_lab.model.qwen_image_21.block import Modulate
from precision_lab.model.rotary import Rotary


def groups(shape: Shape) -> Iterator[Callable[[], Pieces]]:
    """Functions that make the pieces of each size."""
    sizes = dict.fromkeys((*packed_sizes(shape), *plain_sizes(shape)))
    for tokens in map(shape.tokens, shape.forward_sides):
        yield lambda tokens=tokens: products(shape, tokens, sizes, biased=False)
        yield lambda tokens=tokens: attention(shape, tokens, tokens)
        yield lambda tokens=tokens: elementwise(shape, tokens)
        yield lambda tokens=tokens: fast_pieces.kernels(shape, tokens)


def elementwise(shape: Shape, tokens: int) -> Pieces:
    """The memory-bound pieces, from the model's own modules, eager and compiled."""
    config = shape.config
    d, heads, channels = config.dim, config.num_attention_heads, config.attention_head_dim
    x, update, q = normal((1, tokens, d)), normal((1, tokens, d)), normal((1, tokens, heads, channels))
    scale, gate = (normal((1, d), 0.1) for _ in range(2))
    hidden, up = normal((1, tokens, config.hidden)), normal((1, tokens, config.hidden))
    rotation = mx.exp(1j * mx.random.normal((tokens, channels // 2))).astype(mx.complex64)
    norm, modulate, tanh, add = LayerNorm(config.eps), Modulate(), Tanh(), GatedAdd()
    silu, multiply, rms, rotary = SiLU(), Multiply(), RMSNorm(channels, config.eps), Rotary()
    rms.set_dtype(mx.bfloat16)
    prefix = normal((1, shape.text_tokens, heads, channels))
    mx.eval(rotation, rms.parameters())
    size, wide, joint = tokens * d, tokens * config.hidden, (tokens + shape.text_tokens) * d
    for name, kind, flops, nbytes, start, call in (
        ("layer norm and modulate", "norm", 7 * size, 2 * size * BYTES, x, lambda y: modulate(norm(y), scale)),
        ("gated add", "gate", 2 * size, 3 * size * BYTES, x, lambda y: add(y, tanh(gate), update)),
        ("SwiGLU", "swiglu", 5 * wide, 3 * wide * BYTES, hidden, lambda y: multiply(silu(y), up)),
        (
            *("RMS norm and RoPE", "rope", 7 * size, 2 * size * BYTES + rotation.nbytes),
            *(q, lambda y: rotary(rms(y), rotation)),
        ),
        (
            *("joining the prefix", "join", 0, 2 * joint * BYTES),
            *(q, lambda y: mx.concatenate([prefix, y], axis=1)[:, -tokens:]),
        ),
    ):
        yield from both_ways(name, kind, tokens, flops, nbytes, start, call)
