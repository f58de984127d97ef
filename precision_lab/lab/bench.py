"""Runs one variant: an observed generation that writes its parts, or one timed step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from precision_lab.device.environment import backend
from precision_lab.instrument.sites import Components
from precision_lab.lab import latency
from precision_lab.lab.drift import DriftRecorder, ReferenceRecorder
from precision_lab.lab.folder import save_image
from precision_lab.lab.frames import frames_of
from precision_lab.lab.observing import Observer, observing
from precision_lab.lab.recorder import recorder_of
from precision_lab.lab.reference import ReferenceReader, writing
from precision_lab.lab.spec import REFERENCE, RunSpec, Variant
from precision_lab.lab.subject import Case, Step, Subject, components_of, generation, picture_of
from precision_lab.lab.teacher import Teacher
from precision_lab.record import tables
from precision_lab.record.manifest import Coverage
from precision_lab.techniques.base import applied

Advance = Callable[[float, str], None]
"""Called with a number of completed denoising steps and a label, such as the name of the variant."""


class Bench:
    """The source of a run and its subjects, in one process."""

    def __init__(self, spec: RunSpec):
        self.spec = spec
        self.source = spec.source
        self._steps: dict[Case, int] = {}
        self.steps(spec.cases[0])  # settings that fit no run are an error before weights are looked for
        self.layout = spec.source.layout

    def steps(self, case: Case) -> int:
        """Number of steps of a case. Raises InputError for a case that the subject does not accept."""
        if case not in self._steps:
            self._steps[case] = self.source.steps(case)
        return self._steps[case]

    def components(self, dtype: str) -> Components:
        """The components of the plain model in `dtype`."""
        return components_of(self.subject(dtype), self.layout)

    def subject(self, dtype: str) -> Subject:
        return self.source.load(getattr(mx, dtype))

    @contextmanager
    def variant(self, variant: Variant) -> Iterator[tuple[Subject, Components, dict[str, Coverage]]]:
        """Context manager that applies the variant's techniques to the model; yields subject, components, coverage."""
        subject = self.subject(variant.dtype)
        components = components_of(subject, self.layout)
        with applied(components, variant.techniques) as coverage:
            yield subject, components, coverage

    def make(self, variant: Variant, case: Case, shadowed: Sequence[Variant], advance: Advance) -> None:
        """Runs one generation under observation. Its parts are written only when it is complete, activations last.

        shadowed: the variants whose local error is measured during the reference's generation.
        """
        out, part, store = self.spec.out, part_name(variant, case), reference_path(self.spec.out, case)
        probes = [recorder_of(probe) for probe in self.spec.probes.values()]
        labels: dict[str, Any] = {"variant": variant.name, "prompt_id": case.prompt_id, "seed": case.seed}
        with self.variant(variant) as (subject, components, _):
            # weights first: on CUDA, host reads turn buffers into managed memory, which MLX would reuse for weights
            mx.eval(list(components.values()))
            if variant.name == REFERENCE:
                with writing(store) as writer:
                    recorder = ReferenceRecorder(self.spec.drift_sites, writer)
                    observers: list[Observer] = [*probes, recorder]
                    pixels, local = self._teach(subject, components, case, observers, shadowed, advance)
                rows = [{**row, **labels, "variant": row["variant"], "reference": REFERENCE} for row in local]
            else:
                drift = DriftRecorder(self.spec.drift_sites, ReferenceReader(store), self.layout.result)
                with observing(components, [*probes, drift]):
                    pixels = self._generate(subject, case, lambda *_: advance(1, variant.name))
                rows = [{**labels, "reference": REFERENCE, "mode": "free", **row} for row in drift.rows]
        mx.clear_cache()  # frees managed memory and arrays that techniques prepared, 22 GB for 8 bits at full size
        tables.write_part(out, "drift", part, rows)
        if pixels is not None:
            save_image(out / "images" / f"{part}.png", pixels)
        for table, frame in frames_of(probes).items():  # activations last
            tables.write_part(out, table, part, frame.assign(**labels))

    def time_step(self, variant: Variant) -> latency.Sample:
        """Times the first step of the first case. Its initial state is evaluated before the timer starts."""
        case, on_gpu = self.spec.cases[0], backend() != "cpu"
        with self.variant(variant) as (subject, components, _):
            state = subject.start(case)
            modules = list(components.values())
            mx.eval(state, modules)  # includes arrays that techniques prepared
            sample = latency.sample(
                lambda: subject.step(state, 0).result,
                sum(array.nbytes for array in _arrays(modules)),
                settle=on_gpu,
            )
        if on_gpu:  # as above; on a CPU, the next timed step would pay for newly allocated memory
            mx.clear_cache()
        return sample

    def _generate(self, subject: Subject, case: Case, on_step: Callable[[Any, Step], object]) -> np.ndarray | None:
        """The picture of a case, or None without one. Calls on_step(state before the step, step) for each step."""
        state: Any = None
        for before, step in generation(subject, case, self.steps(case)):
            on_step(before, step)
            state = step.state
        return picture_of(subject, state)

    def _teach(
        self,
        subject: Subject,
        components: Components,
        case: Case,
        observers: list[Observer],
        shadowed: Sequence[Variant],
        advance: Advance,
    ) -> tuple[np.ndarray | None, list[dict[str, Any]]]:
        """Generates with the reference; returns its picture and the rows of the variants' local error."""
        spec = self.spec
        steps = spec.teacher.steps(self.steps(case), spec.cases.index(case))
        if not steps:
            with observing(components, observers):
                return self._generate(subject, case, lambda *_: advance(1, REFERENCE)), []
        teacher = Teacher(self.layout, spec.teacher.sites, steps)
        shadows = {v.name: (self.subject(v.dtype), getattr(mx, v.dtype), v.techniques) for v in shadowed}
        number = count()

        def on_step(before: Any, step: Step) -> None:
            advance(1, REFERENCE)
            teacher.step(next(number), before, step)

        with teacher.shadowing(shadows, case), observing(components, observers), teacher.watching(components):
            picture = self._generate(subject, case, on_step)
        return picture, teacher.rows


def part_name(variant: Variant, case: Case) -> str:
    """The name of a generation's parts and of its image."""
    return f"{variant.name}__p{case.prompt_id}__s{case.seed}"


def reference_path(out: Path, case: Case) -> Path:
    """The file with the reference's arrays of a case, which exists until all variants have been compared."""
    return out / "reference" / f"p{case.prompt_id}__s{case.seed}.f32"


def _arrays(modules: Sequence[nn.Module]) -> list[mx.array]:
    """The arrays of the modules without duplicates: a technique may hold a module that shares weights with another."""
    leaves = {id(leaf): leaf for _, leaf in tree_flatten(list(modules)) if isinstance(leaf, mx.array)}
    return list(leaves.values())
