"""Runs one variant: an observed generation, of which files are left, or one timed step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from precision_lab.device.environment import backend
from precision_lab.instrument.replica import replica
from precision_lab.instrument.sites import Components
from precision_lab.lab import latency
from precision_lab.lab.compute import Compute
from precision_lab.lab.drift import DriftRecorder, ReferenceRecorder, ResultRecorder
from precision_lab.lab.folder import image_file
from precision_lab.lab.frames import frames_of
from precision_lab.lab.observing import Observer, observing
from precision_lab.lab.origin import origin
from precision_lab.lab.outcome import Outcome
from precision_lab.lab.recorder import recorder_of
from precision_lab.lab.reference import ReferenceReader, writing
from precision_lab.lab.spec import REFERENCE, RunSpec, Variant
from precision_lab.lab.subject import Case, Step, Subject, components_of, generation, picture_of
from precision_lab.lab.teacher import Teacher
from precision_lab.lab.watch import StreamWatch
from precision_lab.probes.base import ACTIVATIONS
from precision_lab.record import images, tables
from precision_lab.record import results as final
from precision_lab.record.files import File
from precision_lab.record.manifest import Coverage
from precision_lab.techniques.base import applied

Advance = Callable[[float, str], None]
"""Called with a number of completed denoising steps and a label, such as the name of the variant."""

OnStep = Callable[[int, Any, Step], None]
"""Called with the number of a step, the state before it, and the evaluated step."""

log = logging.getLogger(__name__)

REFERENCES = "reference"
"""The folder with the arrays of references."""


class Bench:
    """The source of a run and its subjects, in one process.

    root: the folder in which the arrays of references are kept until all variants have been compared with them; by
    default the run's.
    """

    def __init__(self, spec: RunSpec, root: Path | None = None):
        self.spec, self.root = spec, root or spec.out
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
        """The plain model in `dtype`, the text of a `Compute`."""
        return Compute.parse("dtype", dtype).load(self.source)

    @contextmanager
    def variant(self, variant: Variant) -> Iterator[tuple[Subject, Components, dict[str, Coverage]]]:
        """Context manager that applies the variant's techniques to the model; yields subject, components, coverage."""
        subject = self.subject(variant.dtype)
        if variant.is_reference and variant.techniques:
            subject = replica(subject)  # local error takes the plain modules of the same model meanwhile
        components = components_of(subject, self.layout)
        with applied(components, variant.techniques) as coverage:
            yield subject, components, coverage

    def make(
        self,
        variant: Variant,
        case: Case,
        shadowed: Sequence[Variant],
        advance: Advance,
        stops: bool = False,
        describe: Callable[[Components], File] | None = None,
    ) -> list[File]:
        """Runs one generation under observation; returns what it leaves in the run folder, activations last.

        case: one of the run, to which the variant's own settings are applied. shadowed: the variants whose local error
        is measured during the generation of a reference. stops: whether the generation of another variant ends after
        the first step in which a value is not finite, without a picture. describe: makes a file about the components
        to which the techniques are applied.
        """
        part = part_name(variant, case)
        own, store = self.spec.case(variant, case), reference_path(self.root, variant.reference, case)
        probes = [recorder_of(probe) for probe in self.spec.probes.values()]
        watch, outcome = StreamWatch(), Outcome()

        def is_bad() -> bool:
            return watch.first is not None or not outcome.is_finite

        results = self._results(variant, case)
        labels: dict[str, Any] = {"variant": variant.name, "prompt_id": case.prompt_id, "seed": case.seed}
        with self.variant(variant) as (subject, components, _):
            # weights first: on CUDA, host reads turn buffers into managed memory, which MLX would reuse for weights
            mx.eval(list(components.values()))
            files = [describe(components)] if describe else []
            if variant.is_reference:
                with writing(store) as writer:
                    observers: list[Observer] = [*probes, *results, ReferenceRecorder(self.spec.drift_sites, writer)]
                    follow = _following(watch, outcome, partial(self._advance, advance, variant, own))
                    pixels, local = self._teach(subject, components, variant, case, observers, watch, follow, shadowed)
                rows = [{**row, **labels, "variant": row["variant"], "reference": variant.name} for row in local]
            else:
                drift = DriftRecorder(self.spec.drift_sites, ReferenceReader(store), self.layout.result)
                follow = _following(watch, outcome, partial(self._advance, advance, variant, own))
                with observing(components, [*probes, *results, drift], watch):
                    pixels = self._generate(subject, own, follow, is_bad if stops else None)
                rows = [{**labels, "reference": variant.reference, "mode": "free", **row} for row in drift.rows]
            for result in results:
                rows += [{**labels, "reference": REFERENCE, "mode": "base", **row} for row in result.rows]
        frames = frames_of(probes)
        whole = outcome.row(pixels)
        failure = outcome.failure(watch.first, frames[ACTIVATIONS], partial(self._origin, variant, own))
        mx.clear_cache()  # frees managed memory and arrays that techniques prepared, 22 GB for 8 bits at full size
        place = Path(), variant.name, case.prompt_id, case.seed
        files.append(tables.part_of("drift", part, rows))
        if outcome.result is not None:
            files += final.files_of(final.path_of(*place), outcome.result)
        if pixels is not None:
            files.append(image_file(images.picture_path(*place), pixels))
        files.append(tables.part_of("generations", part, [{**labels, **whole}]))
        if failure is not None:
            files.append(tables.part_of("nonfinite", part, [{**labels, **failure}]))
        return files + [tables.part_of(table, part, frame.assign(**labels)) for table, frame in frames.items()]

    def _advance(self, advance: Advance, variant: Variant, case: Case, number: int) -> None:
        """Reports a step with its place in the run."""
        place = f"prompt {case.prompt_id + 1} of {len(self.spec.prompts)}, seed {case.seed}"
        advance(1, f"{variant.name}, {place}, step {number + 1} of {self.steps(case)}")

    def time_step(self, variant: Variant) -> latency.Sample:
        """Times the first step of the first case. Its initial state is evaluated before the timer starts."""
        case, on_gpu = self.spec.case(variant, self.spec.cases[0]), backend() != "cpu"
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

    def _results(self, variant: Variant, case: Case) -> list[ResultRecorder]:
        """What compares the last result of a generation with other settings with that of the run's settings."""
        if variant.reference == REFERENCE:
            return []
        reader = ReferenceReader(reference_path(self.root, REFERENCE, case))
        last, expected = (self.steps(own) - 1 for own in (self.spec.case(variant, case), case))
        return [ResultRecorder(self.layout.result, reader, last, expected)]

    def _generate(
        self, subject: Subject, case: Case, on_step: OnStep, ends: Callable[[], bool] | None = None
    ) -> np.ndarray | None:
        """The picture of a case, or None without one. Calls on_step(number, state before it, step) for each step.

        ends: asked after each step whether to end without a picture.
        """
        state: Any = None
        for number, (before, step) in enumerate(generation(subject, case, self.steps(case))):
            on_step(number, before, step)
            if ends is not None and ends():
                return None
            state = step.state
        return picture_of(subject, state)

    def _origin(self, variant: Variant, case: Case, step: int | None) -> dict[str, Any] | None:
        """Where the first value that is not finite arose, from a repeated generation with the variant's techniques."""
        try:
            with self.variant(variant) as (subject, components, _):
                return origin(subject, components, case, self.steps(case), step)
        except Exception as error:  # a technique may not allow its modules to be observed
            log.info("%s: no origin of the first non-finite value: %s", variant.name, error)
            return None

    def _teach(
        self,
        subject: Subject,
        components: Components,
        reference: Variant,
        case: Case,
        observers: list[Observer],
        watch: StreamWatch,
        follow: OnStep,
        shadowed: Sequence[Variant],
    ) -> tuple[np.ndarray | None, list[dict[str, Any]]]:
        """Generates with a reference; returns its picture and the rows of the variants' local error."""
        spec, number_of_case = self.spec, self.spec.cases.index(case)
        case = spec.case(reference, case)
        steps = spec.teacher.steps(self.steps(case), number_of_case)
        if not steps:
            with observing(components, observers, watch):
                return self._generate(subject, case, follow), []
        teacher = Teacher(self.layout, spec.teacher.sites, steps)
        state = self.layout.default  # the component in whose dtype the state of a step is
        shadows = {v.name: (self.subject(v.dtype), v.compute.of(state), v.techniques) for v in shadowed}

        def on_step(number: int, before: Any, step: Step) -> None:
            follow(number, before, step)
            teacher.step(number, before, step)

        with teacher.shadowing(shadows, case), observing(components, observers, watch), teacher.watching(components):
            picture = self._generate(subject, case, on_step)
        return picture, teacher.rows


def _following(watch: StreamWatch, outcome: Outcome, advance: Callable[[int], None]) -> OnStep:
    """Takes each step of a generation, evaluated."""

    def on_step(number: int, before: Any, step: Step) -> None:
        watch.read()
        outcome.step(number, step)
        advance(number)

    return on_step


def part_name(variant: Variant, case: Case) -> str:
    """The name of a generation's parts and of its image."""
    return f"{variant.name}__p{case.prompt_id}__s{case.seed}"


def reference_path(root: Path, reference: str, case: Case) -> Path:
    """The file with the arrays of a reference for a case, which exists until all variants have been compared."""
    return root / REFERENCES / f"{reference}__p{case.prompt_id}__s{case.seed}.f32"


def _arrays(modules: Sequence[nn.Module]) -> list[mx.array]:
    """The arrays of the modules without duplicates: a technique may hold a module that shares weights with another."""
    leaves = {id(leaf): leaf for _, leaf in tree_flatten(list(modules)) if isinstance(leaf, mx.array)}
    return list(leaves.values())
