"""Runs an experiment: generates every case with every variant, then times steps; writes tables, images, a manifest."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Any
from uuid import uuid4

from precision_lab.errors import InputError, VariantError
from precision_lab.lab import latency, pinned, resuming
from precision_lab.lab.bench import REFERENCES, part_name, reference_path
from precision_lab.lab.engine import Slot, WorkerLostError
from precision_lab.lab.entries import manifest_of, now, worker_entry
from precision_lab.lab.failure import Failure, is_of_the_disk
from precision_lab.lab.folder import Identity, occupied
from precision_lab.lab.outline import Progress, WarmUp, outline
from precision_lab.lab.plan import Plan, plan
from precision_lab.lab.schedule import MOST_ATTEMPTS, Job, Schedule
from precision_lab.lab.slots import opened
from precision_lab.lab.spec import HERE, ProcessSpec, RunSpec, Variant
from precision_lab.lab.subject import Case
from precision_lab.lab.tasks import Build, CheckWeights, Make, Order, Pin, Task, TaskError, Time
from precision_lab.record import tables
from precision_lab.record.files import NotWrittenError, write_text
from precision_lab.record.lock import FolderLock
from precision_lab.record.manifest import Manifest, Status, WorkerEntry


def run(spec: RunSpec, progress: Progress, build: Build | None = None) -> None:
    """Runs `spec` into `spec.out`. Raises InputError before anything is written if it cannot be run.

    If a variant raises an exception, the manifest records it and the other variants continue. After Ctrl-C, the
    manifest's status is `interrupted` and all completed parts are kept; `spec.resume` continues from them. build: makes
    the spec again from its configuration, in other processes; without it, all tasks are carried out in this one.
    """
    Execution(plan(spec), progress, build).run()


class Execution:
    """Executes a plan and keeps the manifest up to date."""

    def __init__(self, planned: Plan, progress: Progress, build: Build | None):
        self.plan, self.spec, self.bench = planned, planned.spec, planned.bench
        self.progress = progress
        self.errors = {name: failure.message for name, failure in planned.errors.items()}
        self.unsound_weights: list[str] = []
        self.order = Order(self.spec.resolved, build, self.spec.out.absolute(), uuid4().hex)
        self.slots = opened(planned, self.order)
        self.made: dict[str, WorkerEntry] = {}
        self.lock = FolderLock(self.spec.out)
        self.reporting = Lock()
        self.warm_up: WarmUp | None = None
        self.ended = False
        self.started = now()

    def run(self) -> None:
        try:
            with occupied(self.lock, self.spec.resume, self.spec.resolved, self._identity()):
                if self.spec.resume:
                    resuming.check(self.spec, self.bench.layout)
                    self.made = {entry.key: entry for entry in Manifest.read(self.spec.out).workers}
                self._run()
        finally:  # also where the folder could not be taken
            for slot in self.slots:
                slot.close()

    def _run(self) -> None:
        write_text(self.spec.out / "config.yaml", self.spec.resolved)
        self._write_manifest("running")
        if not self.lock.has_effect:
            self.progress.note(f"{self.spec.out}: its file system has no locks, so nothing prevents a second run in it")
        for name, failure in self.plan.errors.items():
            self.progress.note(f"{name} failed: {failure.message}. Traceback: {failure.write(self.spec.out, name)}")
        for note in (*outline(self.plan), *self.plan.notes):
            self.progress.note(note)
        self.order.marker.parent.mkdir(exist_ok=True)
        self.order.marker.touch()
        try:
            for slot in self.slots:
                slot.begin()
            self._check_weights()
            self._measure()
        except BaseException as error:
            with suppress(InputError):  # where the disk is full, the manifest cannot say so
                self._write_manifest("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            if isinstance(error, NotWrittenError | WorkerLostError):
                raise InputError(f"{error}. What was finished is kept; resume=true continues") from error
            raise
        finally:
            self.ended = True
            for slot in self.slots:
                slot.close()
        tables.merge(self.spec.out)
        shutil.rmtree(self.spec.out / REFERENCES, ignore_errors=True)
        self._write_manifest("complete")

    def _identity(self) -> Identity:
        now = self.slots[0].worker.environment
        return Identity(self.spec.source.checkpoint.fingerprint, now["device"], now["mlx"])

    def _check_weights(self) -> None:
        """Says which weights are not finite before anything is computed with them. Such a run goes on."""
        self.unsound_weights, beyond, unread = self._first(HERE, CheckWeights())
        for sentence in (*(f"UNSOUND: {sentence}" for sentence in self.unsound_weights), *beyond):
            self.progress.note(sentence)
        if unread:
            self.progress.note(f"{unread} weights are read at each call, and are not checked for NaN and infinities")
        if self.unsound_weights:
            self._write_manifest("running")

    def _measure(self) -> None:
        spec = self.spec
        pins = pinned.generations(spec)
        steps_of_pins = [self.bench.steps(pin.case) for pin in pins]
        timing = len(spec.variants) * spec.latency.min_rounds
        total = self.plan.steps + sum(steps_of_pins) + timing
        self.progress.start(total)
        jobs = [
            Job(
                variant,
                case,
                Make(variant.name, case, tuple(sorted(variant.needs))),
                part_name(variant, case),
                self._steps(variant, case),
            )
            for case in spec.cases
            for variant in spec.all_variants
        ]
        jobs += [Job(pin.variant, None, Pin(i), pin.part, steps_of_pins[i]) for i, pin in enumerate(pins)]
        left = [job for job in jobs if not self._is_done(job)]
        self.warm_up = WarmUp(sum(job.steps for job in left) + timing, len(self.slots))
        Schedule(left, self._carry, self._lost, self._finished).work(self.slots)
        for slot in self.slots[1:]:  # the next step measures time
            slot.close()
        self._time_steps(timing)

    def _first(self, process: ProcessSpec, task: Task) -> Any:
        """The result of a task in the first slot, which is tried again in another process."""
        for _ in range(MOST_ATTEMPTS - 1):
            try:
                return self.slots[0].perform(process, task)
            except WorkerLostError as error:
                if error.is_gone:
                    raise
        return self.slots[0].perform(process, task)

    def _steps(self, variant: Variant, case: Case) -> int:
        return self.bench.steps(self.spec.case(variant, case))

    def _finished(self, case: Case) -> None:
        for reference in self.spec.references:
            reference_path(self.spec.out, reference.name, case).unlink(missing_ok=True)  # gigabytes for a large model

    def _carry(self, slot: Slot, job: Job) -> None:
        """Carries out a job in a slot, and writes what it leaves."""
        if job.variant.name in self.errors:
            self._advance(job.steps, job.variant.name)
            return
        try:
            files = slot.perform(job.variant.process, self._task(job), self._advance)
        except (InputError, WorkerLostError):
            raise
        except (Exception, SystemExit) as error:
            if self.ended or job.case is None or is_of_the_disk(error, self.spec.out):
                raise
            self._failed(job.variant, error)
            return
        if self.ended:  # by another slot: the folder is no longer ours
            return
        with self.reporting:
            self._note(slot, job.part)
        for file in files:
            file.write(self.spec.out)
        if not slot.reports_steps or job.variant.process != HERE:
            self._advance(job.steps, job.variant.name)

    def _task(self, job: Job) -> Task:
        """The task of a job; of a reference, with the local error of the variants that have not failed."""
        if not isinstance(job.task, Make) or not job.variant.is_reference:
            return job.task
        own = (v for v in self.spec.variants if v.reference == job.variant.name and v.process == HERE)
        return replace(job.task, shadowed=tuple(v.name for v in own if v.name not in self.errors))

    def _lost(self, job: Job, error: WorkerLostError) -> None:
        """Takes a job that has ended its process twice as a failure of its variant."""
        message = f"{error} {MOST_ATTEMPTS} times: a crash, or too little memory"
        self._failed(job.variant, TaskError(Failure(message, f"{message}\n")))

    def _advance(self, amount: float, label: str) -> None:
        with self.reporting:
            self.progress.advance(amount, label)
            if self.warm_up is not None and (said := self.warm_up.sentence(amount, label)):
                self.progress.note(said)

    def _is_done(self, job: Job) -> bool:
        """Whether an earlier start of this run has left everything of a job, which then counts as progress."""
        if job.case is None:
            is_done = tables.is_written(self.spec.out, pinned.TABLE, job.part)
        else:
            is_done = resuming.is_done(self.spec, self.bench.layout, job.variant, job.case)
        if is_done:
            self._advance(job.steps, job.variant.name)
        return is_done

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
            timed: latency.Sample = self._first(variant.process, Time(variant.name))
            return timed

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
            if current is None or is_of_the_disk(error, self.spec.out) or getattr(error, "is_gone", False):
                raise
            self._failed(current, error)
            self._time_steps(weight)
            return
        on_round(1.0)
        tables.write_part(self.spec.out, "latency", part, rows)

    def _failed(self, variant: Variant, error: BaseException) -> None:
        """Records an exception of a variant. Raises VariantError for a reference, without which nothing is measured."""
        failure = error.failure if isinstance(error, TaskError) else Failure.of(error, self.bench.layout)
        self.errors[variant.name] = failure.message
        path = failure.write(self.spec.out, variant.name)
        self.progress.note(f"{variant.name} failed: {failure.message}. Traceback: {path}")
        if variant.is_reference:
            message = f"{variant.name} failed, and nothing can be compared without it: {failure.message}"
            raise VariantError(f"{message}. Traceback: {path}") from error

    def _write_manifest(self, status: Status) -> None:
        manifest_of(
            self.plan,
            status,
            self.started,
            self.slots[0].worker,
            errors=self.errors,
            unsound_weights=self.unsound_weights,
            workers=list(self.made.values()),
        ).write(self.spec.out)

    def _note(self, slot: Slot, part: str) -> None:
        """Notes that a slot made a part."""
        new = worker_entry(slot)
        entry = self.made.get(new.key, new)
        self.made[new.key] = replace(entry, parts=sorted({*entry.parts, part}))
