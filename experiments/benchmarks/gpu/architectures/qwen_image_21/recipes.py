"""What a block of Qwen-Image-2.1 is composed of; see `composition.Recipes`."""

from __future__ import annotations

from experiments.benchmarks.gpu.composition import Recipe
from experiments.benchmarks.gpu.shapes import Shape


def plain_sizes(shape: Shape) -> list[tuple[int, int]]:
    """The linears (in, out) of the plain block: q, k, v, the output, gate, up and down."""
    d, hidden = shape.config.dim, shape.config.hidden
    return [(d, d)] * 4 + [(d, hidden)] * 2 + [(hidden, d)]


def packed_sizes(shape: Shape) -> list[tuple[int, int]]:
    """The products (in, out) of a fast block: q, k and v in one, the output, gate and up in one, and down."""
    d, hidden = shape.config.dim, shape.config.hidden
    return [(d, 3 * d), (d, d), (d, 2 * hidden), (hidden, d)]


def plain(shape: Shape, tokens: int) -> Recipe:
    return [
        *_products(plain_sizes(shape), tokens),
        ("attention", ("attention", "eager", tokens), 1),
        ("norm and modulate", ("layer norm and modulate", "eager", tokens), 2),
        ("gated add", ("gated add", "eager", tokens), 2),
        ("SwiGLU", ("SwiGLU", "eager", tokens), 1),
        ("RMS norm, RoPE, joining", ("RMS norm and RoPE", "eager", tokens), 2),
        ("RMS norm, RoPE, joining", ("joining the prefix", "eager", tokens), 2),
    ]


def fast(shape: Shape, tokens: int) -> Recipe:
    return [
        *_products(packed_sizes(shape), tokens),
        ("attention", ("attention", "eager", tokens), 1),
        ("norm and modulate", ("layer norm and modulate", "fast kernel", tokens), 1),
        ("norm and modulate", ("gated add, layer norm, modulate", "fast kernel", tokens), 1),
        ("gated add", ("gated add", "fast kernel", tokens), 1),
        ("SwiGLU", ("SwiGLU", "fast kernel", tokens), 1),
        ("RMS norm, RoPE, joining", ("RMS norm, RoPE, joining", "fast kernel", tokens), 1),
    ]


def _products(sizes: list[tuple[int, int]], tokens: int) -> Recipe:
    return [("image products", (f"product {k} to {n}", "matmul", tokens), 1) for k, n in sizes]
