"""Our transformer of a shape with generated weights, and the compared ways to run it, over one set of arrays."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from experiments.benchmarks.gpu.shapes import PIXELS_A_TOKEN, Shape
from precision_lab.instrument.replica import replica
from precision_lab.model.rotary import Grid
from precision_lab.techniques.base import Technique, applied

WEIGHT_SCALE = 0.02
"""A gain of 1.1 for products of width 3072: sixty blocks stay finite in bfloat16, unlike the published growth."""

SEEN_TIMESTEP = 0.5


class Inputs(NamedTuple):
    """Latents (B, L, in_channels), text (B, T, J), the grid of the image tokens, and the side in pixels.

    mask: (B, T), non-zero for tokens that are not padding, or None.
    """

    latents: mx.array
    text: mx.array
    grid: Grid
    side: int
    mask: mx.array | None = None


Forward = Callable[[Inputs, float], Any]
"""Returns the lazy velocity of the latents at a timestep in [0, 1], or the lazy arrays of a set-up."""

Pass = Callable[[Any], Forward]
"""Makes a Forward of a transformer."""


class Ours(Protocol):
    """What `ours` of an architecture has."""

    Transformer: type[nn.Module]
    """The class, built from a config."""
    PASSES: Mapping[str, Pass]
    """The ways to compute a velocity, by a suffix of the arm's name. "" is that of a generation's steps."""
    SETUPS: Mapping[str, Pass]
    """What a generation computes once for a text, by name."""
    REORDERED: Sequence[str]
    """Patterns of linears whose sums may be reordered to measure the noise floor."""
    LINEARS: Sequence[str]
    """Patterns of all linears of the blocks."""


Techniques = Mapping[str, Technique]

Opener = Callable[[], AbstractContextManager[Forward]]


def made_transformer(shape: Shape, dtype: mx.Dtype, seed: int = 0) -> nn.Module:
    """A model with linears and biases normal * 0.02, drawn on the device one array at a time; norms scale by 1."""
    model = shape.module("ours").Transformer(shape.config)
    keys = iter(mx.random.split(mx.random.key(seed), len(tree_flatten(model.parameters()))))
    for path, module in model.named_modules():
        if module.children():
            continue
        for name, unmade in module.parameters().items():
            key = next(keys)
            if "norm" in path and not isinstance(module, nn.Linear):
                made = unmade.astype(dtype)  # 1, or 0 where the norm adds 1 to its weight
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
    text = mx.random.normal((1, shape.text_tokens, shape.text_width), key=keys[1]).astype(dtype)
    mx.eval(latents, text)
    return Inputs(latents, text, grid, side)


def times(inputs: Inputs, timestep: float) -> mx.array:
    """The timestep of each sample, (B,)."""
    return mx.array([timestep] * inputs.latents.shape[0])


def joint(model: nn.Module) -> Forward:
    """A pass over text and target."""
    return lambda inputs, timestep: model(
        inputs.latents, times(inputs, timestep), inputs.text, inputs.grid, inputs.mask
    )


def first_blocks(model: nn.Module, depth: int) -> nn.Module:
    """A replica with `depth` blocks, which repeat if `model` has fewer. Arrays are shared."""
    blocks = model.transformer_blocks
    shallow = replica(model)
    shallow.transformer_blocks = [replica(blocks[index % len(blocks)]) for index in range(depth)]
    return shallow


@contextmanager
def rewritten(model: nn.Module, techniques: Techniques) -> Iterator[nn.Module]:
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


def step_of(shape: Shape) -> Pass:
    """The pass of a generation's steps."""
    step: Pass = shape.module("ours").PASSES[""]
    return step


def ours(model: nn.Module, techniques: Callable[[], Techniques], of: Pass) -> Opener:
    """Opens the pass `of` a replica with the techniques. Several can be open at the same time."""

    @contextmanager
    def opened() -> Iterator[Forward]:
        with rewritten(model, techniques()) as twin:
            yield of(twin)

    return opened


def unseen_timesteps() -> Iterator[float]:
    """1016 different timesteps, exact in bfloat16, that exclude the timestep of the arms that repeat one."""
    for octave in range(8):
        for mantissa in range(1, 128):
            yield (128 + mantissa) / 256 / 2**octave


def seconds_of(forward: Forward, inputs: Inputs, timestep: float) -> float:
    """Seconds of one forward."""
    return seconds_to_evaluate(lambda: forward(inputs, timestep))


def seconds_to_evaluate(build: Callable[[], Any]) -> float:
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
