"""Our transformer with generated weights, and the compared ways to run it. All share one set of arrays."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from experiments.benchmarks.gpu.shapes import PIXELS_A_TOKEN, Shape
from precision_lab.instrument.replica import replica
from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.model.rotary import Grid
from precision_lab.techniques.base import Technique, applied

WEIGHT_SCALE = 0.02
"""A gain of 1.1 for products of width 3072: sixty blocks stay finite in bfloat16, unlike the published growth."""

SEEN_TIMESTEP = 0.5


class Inputs(NamedTuple):
    """Latents (1, L, in_channels), text (1, T, J), the grid of the image tokens and the side in pixels."""

    latents: mx.array
    text: mx.array
    grid: Grid
    side: int


Forward = Callable[[Inputs, float], mx.array]
"""Returns the lazy velocity of the latents at a timestep in [0, 1]."""

Techniques = Mapping[str, Technique]

Opener = Callable[[], AbstractContextManager[Forward]]


def made_transformer(config: TransformerConfig, dtype: mx.Dtype, seed: int = 0) -> Transformer:
    """A model with linears and biases normal * 0.02 and norm scales 1, drawn on the device one array at a time."""
    model = Transformer(config)
    keys = iter(mx.random.split(mx.random.key(seed), len(tree_flatten(model.parameters()))))
    for path, module in model.named_modules():
        if module.children():
            continue
        for name, unmade in module.parameters().items():
            key = next(keys)
            if "norm" in path and not isinstance(module, nn.Linear):
                made = mx.ones(unmade.shape, dtype)
            else:
                made = mx.random.normal(unmade.shape, dtype, scale=WEIGHT_SCALE, key=key)
            mx.eval(made)
            module[name] = made
    return model


def made_inputs(shape: Shape, side: int, dtype: mx.Dtype, seed: int = 1) -> Inputs:
    """Unit normal latents and text."""
    keys = mx.random.split(mx.random.key(seed + side), 2)
    grid = Grid(side // PIXELS_A_TOKEN, side // PIXELS_A_TOKEN)
    latents = mx.random.normal((1, shape.tokens(side), shape.config.in_channels), key=keys[0]).astype(dtype)
    text = mx.random.normal((1, shape.text_tokens, shape.config.joint_attention_dim), key=keys[1]).astype(dtype)
    mx.eval(latents, text)
    return Inputs(latents, text, grid, side)


def first_blocks(model: Transformer, depth: int) -> Transformer:
    """A replica with `depth` blocks, which repeat if `model` has fewer. Arrays are shared."""
    blocks = model.transformer_blocks
    shallow = replica(model)
    shallow.transformer_blocks = [replica(blocks[index % len(blocks)]) for index in range(depth)]
    return shallow


def forward_of(model: Transformer) -> Forward:
    return lambda inputs, timestep: model(inputs.latents, mx.array([timestep]), inputs.text, inputs.grid)


@contextmanager
def rewritten(model: Transformer, techniques: Techniques) -> Iterator[Transformer]:
    """Context manager that yields a replica with `techniques`, and afterwards frees the device's cached memory.

    `fast` packs weights and stores views of them in the modules that it replaces. The model receives these views too,
    so that the old arrays are freed and later replicas share the packed arrays.
    """
    twin = replica(model)
    pairs = list(zip(model.modules(), twin.modules(), strict=True))
    try:
        with applied({"transformer": twin}, techniques):
            for own, packed in pairs:
                for key, value in packed.items():
                    if isinstance(value, mx.array):
                        own[key] = value
            yield twin
    finally:
        del twin, pairs
        gc.collect()
        mx.clear_cache()


def no_techniques() -> Techniques:
    return {}


def fast() -> Techniques:
    from precision_lab.techniques.fast import Fast

    return {"fast": Fast()}


def compiled_blocks() -> Techniques:
    from precision_lab.techniques.compiled_blocks import CompiledBlocks

    return {"compiled_blocks": CompiledBlocks()}


def ours(model: Transformer, techniques: Callable[[], Techniques]) -> Opener:
    """Opens a replica with the techniques. Several can be open at the same time."""

    @contextmanager
    def opened() -> Iterator[Forward]:
        with rewritten(model, techniques()) as twin:
            yield forward_of(twin)

    return opened


def unseen_timesteps() -> Iterator[float]:
    """1016 different timesteps, exact in bfloat16, that exclude the timestep of the arms that repeat one."""
    for octave in range(8):
        for mantissa in range(1, 128):
            yield (128 + mantissa) / 256 / 2**octave


def seconds_of(forward: Forward, inputs: Inputs, timestep: float) -> float:
    """Seconds of one forward."""
    return seconds_to_evaluate(lambda: forward(inputs, timestep))


def seconds_to_evaluate(build: Callable[[], mx.array | list[mx.array]]) -> float:
    """Wall-clock seconds from the start of building the graph until the device is done."""
    mx.synchronize()
    start = time.perf_counter()
    mx.eval(build())
    mx.synchronize()
    return time.perf_counter() - start


def peak_gigabytes(forward: Forward, inputs: Inputs) -> float:
    """Peak memory of a forward, after its kernels and tables exist, including weights, in GB (1e9 bytes)."""
    for _ in range(2):
        seconds_of(forward, inputs, SEEN_TIMESTEP)
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    seconds_of(forward, inputs, SEEN_TIMESTEP)
    return mx.get_peak_memory() / 1e9
