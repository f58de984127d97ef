"""What a block of Qwen-Image 1.x is composed of; see `composition.Recipes`."""

from __future__ import annotations

from experiments.benchmarks.gpu.composition import Recipe
from experiments.benchmarks.gpu.shapes import Shape


def plain(shape: Shape, tokens: int) -> Recipe:
    recipe = [
        ("attention", ("attention", "eager", tokens), 1),
        ("modulation vectors", ("modulation vectors", "addmm", 1), 2),
        ("RMS norm, RoPE, joining", ("joining the streams", "eager", tokens), 3),
    ]
    for length, products in ((tokens, "image products"), (shape.text_tokens, "text products")):
        d = shape.config.dim
        recipe += [(products, (f"product {d} to {d}", "addmm", length), 4)]
        recipe += [(products, (f"product {d} to {4 * d}", "addmm", length), 1)]
        recipe += [(products, (f"product {4 * d} to {d}", "addmm", length), 1)]
        recipe += [("norm and modulate", ("layer norm and modulate", "eager", length), 2)]
        recipe += [("gated add", ("gated add", "eager", length), 2)]
        recipe += [("GELU", ("GELU", "eager", length), 1)]
        recipe += [("RMS norm, RoPE, joining", ("RMS norm and RoPE", "eager", length), 2)]
    return recipe


def fast(shape: Shape, tokens: int) -> Recipe:
    recipe = [
        ("attention", ("attention", "eager", tokens), 1),
        ("RMS norm, RoPE, joining", ("RMS norm, RoPE, joining", "fast kernel", tokens), 1),
    ]
    for length, products in ((tokens, "image products"), (shape.text_tokens, "text products")):
        d = shape.config.dim
        for k, n in ((d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)):
            recipe += [(products, (f"product {k} to {n}", "matmul", length), 1)]
        recipe += [("norm and modulate", ("layer norm and modulate", "fast kernel", length), 1)]
        recipe += [("norm and modulate", ("gated add, layer norm, modulate", "fast kernel", length), 1)]
        recipe += [("gated add", ("gated add", "fast kernel", length), 1)]
        recipe += [("GELU", ("GELU", "fast kernel", length), 1)]
    return recipe
