"""One guided step of a Qwen-Image pipeline at any sigma, and the decoding of its latents."""

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from precision_lab.instrument.arrays import to_numpy
from precision_lab.model.rotary import Grid
from precision_lab.model.text_to_image.pipeline import denoise
from precision_lab.techniques.base import applied


class Draw(NamedTuple):
    """The input of one evaluation: a seed for latents, sigmas before and after the step, a prompt, a token grid."""

    seed: int
    levels: tuple[float, float]
    prompt: str
    grid: Grid


def draws(count=3, seed=0):
    """Random latents, sigmas over the whole range and small odd grids; prompts of different lengths."""
    rng = np.random.default_rng(seed)
    words = np.array(["red", "a", "circle", "two", "on", "blue", "small", "star", "white", "left"])
    drawn = []
    for _ in range(count):
        sigma = rng.uniform(0.05, 1.0)
        prompt = " ".join(rng.choice(words, rng.integers(2, 9)))
        grid = Grid(*(int(n) for n in rng.integers(2, 6, 2)))
        drawn.append(Draw(int(rng.integers(2**31)), (sigma, sigma * rng.uniform(0.5, 0.95)), prompt, grid))
    return drawn


def evaluate(pipeline, draw, *techniques):
    """The velocity, the latents and the pixels, which pass every component: fp32 arrays by name."""
    merged = {f"{i}.{name}": technique for i, group in enumerate(techniques) for name, technique in group.items()}
    with applied(pipeline.components, merged):
        cond, uncond = (pipeline.encode([prompt]) for prompt in (draw.prompt, " "))
        latents = pipeline.noise(draw.seed, draw.grid)
        levels = np.array(draw.levels, np.float32)
        loop = denoise(pipeline.transformer, pipeline.sampler, latents, levels, draw.grid, cond, uncond, 4.0)
        step = next(loop)
        found = {"velocity": step.velocity, "latents": step.latents, "pixels": pipeline.decode(step.latents, draw.grid)}
        return {name: to_numpy(array.astype(mx.float32)) for name, array in found.items()}


def pipelines(source):
    """`pipelines(source)(dtype)` is the pipeline of a source in a dtype."""
    return lambda dtype: source.load(dtype).pipeline
