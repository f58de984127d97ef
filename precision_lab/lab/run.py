"""Runs an experiment: generates every case with every variant, then times steps; writes tables, images, a manifest."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from threading import Lock
from typing import Protocol

from precision_lab.device.environment import environment, numeric_switches
from precision_lab.errors import InputError, VariantError
from precision_lab.lab import latency, pinned, resuming
from precision_lab.lab.bench import reference_path
from precision_lab.lab.crew import Crew, Generation
from precision_lab.lab.failure import FOLDER, Failure, is_of_the_disk
from precision_lab.lab.folder import Identity, occupied
from precision_lab.lab.plan import HERE, Plan, plan
from precision_lab.lab.process import Child, ChildError
from precision_lab.lab.recorder import declared
from precision_lab.lab.soundness import WeightCheck, unread_weights
from precision_lab.lab.spec import REFERENCE, RunSpec, Variant
from precision_lab.lab.subject import Case
from precision_lab.record import tables
from precision_lab.record.files import NotWrittenError, write_text
from precision_lab.record.lock import FolderLock
from precision_lab.record.manifest import Environment, Manifest, Reference, Status, Storage, VariantEntry


class Progress(Protocol):
    """Receives the progress of a run. `amount` is in denoising steps; timing rounds count as steps."""

    def start(self, total: float) -> None: ...

    def advance(self, amount: float, label: str) -> None: ...

    def note(self, text: str) -> None: ...


def run(spec: RunSpec, progress: Progress, child: Sequence[str] = ()) -> None:
    """Runs `spec` into `spec.out`. Raises InputError before anything is written if it cannot be run.

    If a variant raises an exception, the manifest records it and the other variants continue. After Ctrl-C, the
    manifest's status is `interrupted` and all completed parts are kept; `spec.resume` continues from them. child: the
    command that starts a process for variants that need their own, see `precision_lab.lab.process`.
    """
    Execution(plan(spec), progress, child).run()


class Execution:
    """Executes a plan and keeps the manifest up to date."""

    def __init__(self, planned: Plan, progress: Progress, child: Sequence[str]):
        self.plan, self.spec, self.bench = planned, planned.spec, planned.bench
        self.progress = progress
        self.errors = {name: failure.message for name, failure in planned.errors.items()}
        self.unsound_weights: list[str] = []
        assert child or not planned.processes, "variants of another process need a command that starts one"
        self.lock = FolderLock(self.spec.out)
        self.children = {process: Child(child, self.spec.out, process, self.lock) for process in planned.processes}
        alone = bool(planned.processes) or not child  # two callers of one process would receive each other's answers
        helpers = 0 if alone else planned.workers - 1
        self.helpers = [Child(child, self.spec.out, HERE, self.lock) for _ in range(helpers)]
        self.reporting = Lock()
        self.ended = False
        self.started = _now()

    def run(self) -> None:
        with occupied(self.lock, self.spec.resume, self.spec.resolved, self._identity()):
            if self.spec.resume:
                resuming.check(self.spec, self.bench.layout)
            self._run()

    def _run(self) -> None:
        write_text(self.spec.out / "config.yaml", self.spec.resolved)
        self._write_manifest("running")
        if not self.lock.has_effect:
            self.progress.note(f"{self.spec.out}: its file system has no locks, so nothing prevents a second run in it")
        for name, failure in self.plan.errors.items():
            self.progress.note(f"{name} failed: {failure.message}. Traceback: {failure.write(self.spec.out, name)}")
        for note in self.plan.notes:
            self.progress.note(note)
        try:
            self._check_weights()
            self._measure()
        except BaseException as error:
            with suppress(InputError):  # where the disk is full, the manifest cannot say so
                self._write_manifest("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            if isinstance(error, NotWrittenError):
                raise InputError(f"{error}. What was finished is kept; resume=true continues") from error
            raise
        finally:
            self.ended = True
            for child in (*self.children.values(), *self.helpers):
                child.close()
        tables.merge(self.spec.out)
        shutil.rmtree(self.spec.out / "reference", ignore_errors=True)
        self._write_manifest("complete")

    def _identity(self) -> Identity:
        now = environment()
        return Identity(self.spec.source.checkpoint.fingerprint, now["device"], now["mlx"])

    def _check_weights(self) -> None:
        """Says which weights are not finite before anything is computed with them. Such a run goes on."""
        components = self.bench.components("float32")
        dtypes = {name: {variant.compute.of(name) for variant in self.spec.variants} for name in components}
        check = WeightCheck(components, dtypes)
        self.unsound_weights = check.not_finite
        for sentence in (*(f"UNSOUND: {sentence}" for sentence in check.not_finite), *check.beyond):
            self.progress.note(sentence)
        unread = unread_weights(components)
        if unread:
            self.progress.note(f"{unread} weights are read at each call, and are not checked for NaN and infinities")
        if check.not_finite:
            self._write_manifest("running")

    def _measure(self) -> None:
        spec = self.spec
        timing = len(spec.variants) * spec.latency.min_rounds
        self.progress.start(self.plan.steps + pinned.steps(spec) + timing)
        generations = Crew(spec.all_variants, spec.cases, self._finished)
        helpers = [partial(self._make, helper=helper) for helper in self.helpers]
        generations.work(self._make, helpers, partial(pinned.measure, self.bench, self._advance))
        for helper in self.helpers:  # the next step measures time
            helper.close()
        self._time_steps(timing)

    def _finished(self, case: Case) -> None:
        for reference in self.spec.references:
            reference_path(self.spec.out, reference.name, case).unlink(missing_ok=True)  # gigabytes for a large model

    def _make(self, generation: Generation, helper: Child | None = None) -> None:
        variant, case = generation
        if self._is_done(variant, case) or variant.name in self.errors:
            self._advance(self.bench.steps(self.spec.case(variant, case)), variant.name)
            return
        try:
            if variant.process != HERE:
                self.children[variant.process].make(variant, case, self._advance)
            elif helper is not None:
                helper.make(variant, case, self._advance)
            else:
                own = (v for v in self.spec.variants if v.reference == variant.name)
                shadowed = [v for v in own if v.process == HERE and v.name not in self.errors]
                self.bench.make(variant, case, shadowed, self._advance)
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            if self.ended or is_of_the_disk(error, self.spec.out):
                raise
            self._failed(variant, error)
            if variant.is_reference:
                message = f"{variant.name} failed, and nothing can be compared without it: {self.errors[variant.name]}"
                raise VariantError(f"{message}. Traceback: {self.spec.out / FOLDER / variant.name}.txt") from error

    def _advance(self, amount: float, label: str) -> None:
        with self.reporting:
            self.progress.advance(amount, label)

    def _is_done(self, variant: Variant, case: Case) -> bool:
        """Whether a generation is complete. The reference's is repeated if a variant still needs its arrays."""
        if variant.is_reference and not reference_path(self.spec.out, variant.name, case).exists():
            return all(self._is_done(v, case) for v in self.spec.all_variants if variant.name in v.needs)
        return resuming.is_made(self.spec, self.bench.layout, variant, case)

    def _time_steps(self, weight: float) -> None:
        """Times the steps of all variants in turn; again without one that raises, whose samples are not comparable."""
        part = "step"
        if tables.is_written(self.spec.out, "latency", part):
            self._advance(weight, "timing")
            return
        current: Variant | None = None

        def sample(variant: Variant) -> latency.Sample:
            nonlocal current
            current = variant
            return self.children.get(variant.process, self.bench).time_step(variant)

        samplers = {v.name: partial(sample, v) for v in self.spec.variants if v.name not in self.errors}
        if self.spec.baseline not in samplers:
            return
        shown = 0.0

        def on_round(share: float) -> None:
            nonlocal shown
            self._advance(max(0.0, min(share, 1.0) - shown) * weight, "timing")
            shown = max(shown, min(share, 1.0))

        try:
            rows = latency.measure(samplers, self.spec.baseline, self.spec.latency, self.plan.margin, on_round)
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            if current is None or is_of_the_disk(error, self.spec.out):
                raise
            self._failed(current, error)
            self._time_steps(weight)
            return
        on_round(1.0)
        tables.write_part(self.spec.out, "latency", part, rows)

    def _failed(self, variant: Variant, error: BaseException) -> None:
        failure = error.failure if isinstance(error, ChildError) else Failure.of(error, self.bench.layout)
        self.errors[variant.name] = failure.message
        path = failure.write(self.spec.out, variant.name)
        self.progress.note(f"{variant.name} failed: {failure.message}. Traceback: {path}")

    def _write_manifest(self, status: Status) -> None:
        spec = self.spec
        Manifest(
            status=status,
            experiment=spec.experiment,
            command=list(spec.command),
            started=self.started,
            finished=None if status == "running" else _now(),
            environment=Environment(**environment()),
            checkpoint=spec.source.checkpoint,
            layout=self.bench.layout,
            case=dict(spec.settings),
            reference=Reference(REFERENCE, spec.reference.dtype, list(spec.reference.techniques)),
            baseline=spec.baseline,
            variants={variant.name: self._described(variant) for variant in spec.all_variants},
            sites=self.plan.coverage,
            errors=self.errors,
            unsound_weights=self.unsound_weights,
            prompts=list(spec.prompts),
            seeds=list(spec.seeds),
            latency_margin=self.plan.margin,
            pinned=pinned.described(spec),
            claims=[dict(claim) for claim in spec.claims],
            columns=declared(spec.probes.values()),
            notes=self.plan.notes,
        ).write(spec.out)

    def _described(self, variant: Variant) -> VariantEntry:
        stored = self.plan.storage.get(variant.name, {})
        return VariantEntry(
            dtype=variant.dtype,
            techniques=list(variant.techniques),
            expect=variant.expect,
            process=asdict(variant.process),
            switches=numeric_switches(variant.process.tf32),
            settings=dict(variant.settings),
            reference=variant.reference,
            linear_weights={
                component: Storage(weights.weights, weights.bits // 8, weights.bits_per_weight)
                for component, weights in stored.items()
                if weights.weights
            },
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
