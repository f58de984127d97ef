"""Text to image as a subject of the laboratory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from precision_lab.instrument.scope import scope
from precision_lab.instrument.sites import Components
from precision_lab.model.rotary import Grid
from precision_lab.model.text_to_image.pipeline import Conditioning, Pipeline, denoise_step
from precision_lab.settings import checked


class Case(Protocol):
    """The attributes of a case that this subject reads."""

    @property
    def prompt(self) -> str: ...

    @property
    def seed(self) -> int: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...


class State(NamedTuple):
    """Latents (1, L, C), what both prompts are to the transformer, and the values that all steps share.

    levels: the sigmas of all steps, and 0. uncond: None without guidance. batched: whether `cond` is that of both
    prompts, the negative one last, and `uncond` is None.
    """

    latents: mx.array
    cond: Conditioning
    uncond: Conditioning | None
    levels: np.ndarray
    grid: Grid
    guidance_scale: float
    batched: bool


class Step(NamedTuple):
    """A step of this subject; `output` is the velocity, `result` the latents."""

    sigma: float
    output: mx.array
    result: mx.array
    state: State


@dataclass
class TextToImage:
    """A pipeline in one dtype, as a subject of the laboratory."""

    pipeline: Pipeline

    @property
    def components(self) -> Components:
        return self.pipeline.components

    def start(self, case: Case) -> State:
        """The initial state of a case: encoded prompts and the noise of the seed.

        Each prompt is encoded inside a scope that names its branch, both together without one.
        """
        pipeline, settings = self.pipeline, checked(self.pipeline.settings, case.settings)
        grid = pipeline.grid(settings.height, settings.width)
        batched, uncond = settings.guided and settings.batched_guidance, None
        if batched:
            cond = pipeline.condition([case.prompt, settings.negative_prompt], settings)
        else:
            with scope(branch="cond"):
                cond = pipeline.condition([case.prompt], settings)
            if settings.guided:
                with scope(branch="uncond"):
                    uncond = pipeline.condition([settings.negative_prompt], settings)
        levels = pipeline.levels(settings, grid)
        return State(pipeline.noise(case.seed, grid), cond, uncond, levels, grid, settings.guidance_scale, batched)

    def step(self, state: State, number: int) -> Step:
        levels = state.levels[number : number + 2]
        step = denoise_step(
            self.pipeline.transformer,
            self.pipeline.sampler,
            state.latents,
            number,
            (levels[0], levels[1]),
            state.grid,
            state.cond,
            state.uncond,
            state.guidance_scale,
            state.batched,
        )
        return Step(step.sigma, step.velocity, step.latents, state._replace(latents=step.latents))

    def picture(self, state: State) -> mx.array:
        return self.pipeline.decode(state.latents, state.grid)[0]
