"""What is done with one variant: a generation under observation that leaves its parts, or one timed step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from precision_lab.device.environment import backend
from precision_lab.lab import latency, tables
from precision_lab.lab.drift import DriftRecorder, ReferenceRecorder
from precision_lab.lab.folder import save_image
from precision_lab.lab.frames import frames_of
from precision_lab.lab.generation import encode, generate
from precision_lab.lab.models import Models, open_checkpoint
from precision_lab.lab.recorder import Observer, observing, recorder_of
from precision_lab.lab.reference import ReferenceReader, writing
from precision_lab.lab.spec import REFERENCE, Case, RunSpec, Variant
from precision_lab.lab.teacher import Teacher
from precision_lab.model.qwen_image.pipeline import Conditioning, Pipeline, Step
from precision_lab.techniques.base import Coverage, applied

Advance = Callable[[float, str], None]
"""Told the denoising steps that were made, and for which variant."""


class Bench:
    """The checkpoint of a run and its models, in one process."""

    def __init__(self, spec: RunSpec):
        self.spec = spec
        self.checkpoint = open_checkpoint(spec.model)
        self.models = Models(self.checkpoint)
        self.grid = self.models(mx.float32).grid(spec.sampler.height, spec.sampler.width)

    @contextmanager
    def variant(self, variant: Variant) -> Iterator[tuple[Pipeline, dict[str, Coverage]]]:
        """The model rewritten by the variant's techniques, for the length of the block."""
        pipeline = self.models(getattr(mx, variant.dtype))
        with applied(pipeline.components, variant.techniques) as coverage:
            yield pipeline, coverage

    def make(self, variant: Variant, case: Case, taught: Sequence[Variant], advance: Advance) -> None:
        """One generation under observation; its parts are written only when it is whole, activations last.

        taught: the variants whose local error is measured beside the reference.
        """
        out, part, store = self.spec.out, part_name(variant, case), reference_path(self.spec.out, case)
        probes = [recorder_of(probe) for probe in self.spec.probes.values()]
        labels: dict[str, Any] = {"variant": variant.name, "prompt_id": case.prompt_id, "seed": case.seed}
        with self.variant(variant) as (pipeline, _):
            # weights first: on CUDA what the host reads turns into managed memory, and MLX would put weights there next
            mx.eval(list(pipeline.components.values()))
            if variant.name == REFERENCE:
                with writing(store) as writer:
                    recorder = ReferenceRecorder(self.spec.drift_sites, writer)
                    pixels, local = self._teach(pipeline, case, [*probes, recorder], taught, advance)
                rows = [{**row, **labels, "variant": row["variant"], "reference": REFERENCE} for row in local]
            else:
                drift = DriftRecorder(self.spec.drift_sites, ReferenceReader(store))
                pixels = self._observe(pipeline, case, variant.name, [*probes, drift], advance)
                rows = [{**labels, "reference": REFERENCE, "mode": "free", **row} for row in drift.rows]
        mx.clear_cache()  # of managed memory and of what techniques prepared, 22 GB for 8 bits at full size
        tables.write_part(out, "drift", part, rows)
        save_image(out / "images" / f"{part}.png", pixels)
        for table, frame in frames_of(probes).items():  # activations last
            tables.write_part(out, table, part, frame.assign(**labels))

    def time_step(self, variant: Variant) -> latency.Sample:
        """The first denoising step of the first case, with its text already encoded."""
        case, on_gpu = self.spec.cases[0], backend() != "cpu"
        with self.variant(variant) as (pipeline, _):
            cond, uncond = encode(pipeline, self.spec.sampler, case.prompt)
            noise = pipeline.noise(case.seed, self.grid)
            modules = list(pipeline.components.values())
            mx.eval(cond, uncond, noise, modules)  # also what techniques prepared
            scale, steps = self.spec.sampler.guidance_scale, self.spec.sampler.steps
            sample = latency.sample(
                lambda: next(pipeline.denoise(noise, self.grid, steps, cond, uncond, scale)).latents,
                sum(array.nbytes for array in _arrays(modules)),
                settle=on_gpu,
            )
        if on_gpu:  # of what techniques prepared, as above; on a CPU fresh memory would be paid for on the clock
            mx.clear_cache()
        return sample

    def _observe(
        self, pipeline: Pipeline, case: Case, label: str, observers: list[Observer], advance: Advance
    ) -> np.ndarray:
        with observing(pipeline.components, observers):
            return generate(pipeline, self.spec.sampler, self.grid, case, lambda *_: advance(1, label))

    def _teach(
        self, pipeline: Pipeline, case: Case, observers: list[Observer], taught: Sequence[Variant], advance: Advance
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """The reference's pixels, and rows of the variants' local error beside it."""
        spec, count = self.spec, self.spec.sampler.steps
        steps = spec.teacher.steps(count, spec.cases.index(case))
        if not steps:
            return self._observe(pipeline, case, REFERENCE, observers, advance), []
        teacher = Teacher(spec.teacher.sites, steps)
        shadows = {v.name: (self.models(getattr(mx, v.dtype)), v.techniques) for v in taught}

        def on_step(step: Step, before: mx.array, texts: Sequence[Conditioning | None]) -> None:
            advance(1, REFERENCE)
            teacher.step(step, before, self.grid, count, spec.sampler.guidance_scale, texts)

        with (
            teacher.shadowing(shadows, self.grid, count, case.prompt),
            observing(pipeline.components, observers),
            teacher.watching(pipeline),
        ):
            pixels = generate(pipeline, spec.sampler, self.grid, case, on_step)
        return pixels, teacher.rows


def part_name(variant: Variant, case: Case) -> str:
    """The name of a generation's parts and of its image."""
    return f"{variant.name}__p{case.prompt_id}__s{case.seed}"


def reference_path(out: Path, case: Case) -> Path:
    """Where the reference's arrays of a case stand until all its variants are compared."""
    return out / "reference" / f"p{case.prompt_id}__s{case.seed}.f32"


def _arrays(modules: Sequence[nn.Module]) -> list[mx.array]:
    """The arrays of the modules, once each: a technique may hold a module that shares its weights with another."""
    leaves = {id(leaf): leaf for _, leaf in tree_flatten(list(modules)) if isinstance(leaf, mx.array)}
    return list(leaves.values())
