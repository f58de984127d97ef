"""One generation: a prompt and a seed to the pixels of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from precision_lab.instrument.arrays import to_numpy
from precision_lab.instrument.scope import scope
from precision_lab.lab.spec import Case, SamplerSpec
from precision_lab.model.qwen_image.pipeline import Conditioning, Pipeline, Step
from precision_lab.model.qwen_image.rope import Grid

OnStep = Callable[[Step, mx.array, Sequence[Conditioning | None]], None]
"""Told each step, the latents before it, and the embeddings of the prompt and of the negative prompt."""


def encode(pipeline: Pipeline, sampler: SamplerSpec, prompt: str) -> tuple[Conditioning, Conditioning | None]:
    """Embeddings of the prompt, and of the negative prompt where there is guidance."""
    with scope(branch="cond"):
        cond = pipeline.encode([prompt])
    if not sampler.guided:
        return cond, None
    with scope(branch="uncond"):
        return cond, pipeline.encode([sampler.negative_prompt])


def generate(pipeline: Pipeline, sampler: SamplerSpec, grid: Grid, case: Case, on_step: OnStep) -> np.ndarray:
    """Pixel values (H, W, 3) of one image, evaluated step by step.

    on_step: called with each step, the latents before it, and the embeddings of both prompts.
    """
    cond, uncond = encode(pipeline, sampler, case.prompt)
    latents = pipeline.noise(case.seed, grid)
    mx.eval(cond, uncond, latents)
    for step in pipeline.denoise(latents, grid, sampler.steps, cond, uncond, sampler.guidance_scale):
        mx.eval(step.latents)
        on_step(step, latents, (cond, uncond))
        latents = step.latents
    return to_numpy(pipeline.decode(latents, grid))[0]
