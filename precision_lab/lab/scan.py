"""Scans the sensitivity of a model: every candidate at every group of sites, in some steps of some cases.

The scan is a run folder like any other: its parts are written as they are measured, a killed scan continues with
`resume`, and the tables do not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from threading import Lock
from typing import Any
from uuid import uuid4

import pandas as pd

from precision_lab.errors import InputError, VariantError
from precision_lab.lab import slots
from precision_lab.lab.bench import Bench
from precision_lab.lab.engine import Slot, WorkerLostError
from precision_lab.lab.entries import variant_entry, worker_entry
from precision_lab.lab.failure import Failure, is_of_the_disk
from precision_lab.lab.folder import Identity, occupied
from precision_lab.lab.groups import Group
from precision_lab.lab.outline import Progress
from precision_lab.lab.scan_plan import ScanPlan
from precision_lab.lab.schedule import Job, Schedule
from precision_lab.lab.sensitivity import Confirm, Measure, TimeModules, in_chunks, recorded, scanned_variant
from precision_lab.lab.spec import LOCAL, REFERENCE
from precision_lab.lab.subject import Case
from precision_lab.lab.tasks import Build, Order, Task, TaskError
from precision_lab.record import tables
from precision_lab.record.files import NotWrittenError, advising, write_text
from precision_lab.record.lock import FolderLock
from precision_lab.record.manifest import Environment, Manifest, Reference, Status, WorkerEntry
from precision_lab.record.scan_tables import DRIFT, GROUPS, KEPT, NOISE, SECONDS, SENSITIVITY, UNFIT
from precision_lab.techniques.parts.weight_storage import storage

_MOST_PASSES = 100
"""About how many passes a task makes: those of a task that is killed are lost."""


class Scan:
    """Carries out a plan, and keeps the manifest up to date. Use it as a context: it occupies the run folder."""

    def __init__(self, planned: ScanPlan, progress: Progress, build: Build | None):
        self.plan, self.spec, self.run = planned, planned.spec, planned.spec.run
        self.progress = progress
        self._order = Order(self.run.resolved, build, self.run.out.absolute(), uuid4().hex)
        self._slots = slots.opened(planned.plan, self._order)
        self._lock = FolderLock(self.run.out)
        self._reporting = Lock()
        self._made: dict[str, WorkerEntry] = {}
        self._ended = False
        self._started = _now()

    @contextmanager
    def occupying(self) -> Iterator[None]:
        """Context manager that owns the run folder. Raises InputError as a run does."""
        now = self._slots[0].worker.environment
        identity = Identity(self.run.source.checkpoint.fingerprint, now["device"], now["mlx"])
        try:
            if (
                self.run.engine == LOCAL
            ):  # which the first slot needs anyway: a plain model that is not finite is a mistake
                recorded(self.plan.bench, *next(iter(self.plan.steps.items())))
            with occupied(self._lock, self.run.resume, self.run.resolved, identity):
                if self.run.resume:
                    self._check_parts()
                    self._made = {entry.key: entry for entry in Manifest.read(self.run.out).workers}
                with self._stating():
                    yield
        finally:
            self._ended = True
            for slot in self._slots:
                slot.close()

    @contextmanager
    def _stating(self) -> Iterator[None]:
        """Context manager that writes configuration and manifest, and how the scan ended."""
        write_text(self.run.out / "config.yaml", self.run.resolved)
        self._write_manifest("running")
        self._write_groups()
        self._order.marker.parent.mkdir(exist_ok=True)
        self._order.marker.touch()
        for note in self.plan.notes:
            self.progress.note(note)
        try:
            for slot in self._slots:
                slot.begin()
            yield
        except BaseException as error:
            with suppress(InputError):  # where the disk is full, the manifest cannot say so
                self._write_manifest("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            if isinstance(error, NotWrittenError | WorkerLostError):
                raise InputError(f"{error}. What was finished is kept; resume=true continues") from error
            raise
        self._order.marker.unlink(missing_ok=True)
        with suppress(OSError):
            self._order.marker.parent.rmdir()
        self._write_manifest("complete")

    def measure(self, confirmed: int) -> pd.DataFrame:
        """Measures all that a plan holds; returns the rows of the candidates. confirmed: generations that follow."""
        cases = self.plan.steps
        generations = confirmed * sum(self.plan.bench.steps(case) for case in cases)
        timed = len(self.plan.injections) if self.spec.rounds else 0
        self.progress.start(self.plan.passes + generations * _branches(self.plan.bench) + timed)
        jobs = []
        for case, steps in cases.items():
            for table, injections in ((SENSITIVITY, self.plan.injections), (NOISE, self.plan.noise)):
                costs = (self.plan.costs[each.group.name] * len(steps) for each in injections)
                for number, (chunk, chunk_costs) in enumerate(in_chunks(injections, costs, _MOST_PASSES)):
                    part = f"p{case.prompt_id}__s{case.seed}__{number:05d}"
                    task = Measure(table, part, case, steps, chunk, chunk_costs)
                    jobs.append(self._job(case, task, table, part, sum(chunk_costs)))
        self._work(jobs)
        return self._sorted(SENSITIVITY)

    def confirm(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Generates every case with each of these pairs of group and candidate."""
        known = {(each.group.name, each.candidate.name): (at, each) for at, each in enumerate(self.plan.injections)}
        jobs = []
        for case, steps in self.plan.steps.items():
            cost = self.plan.bench.steps(case) * _branches(self.plan.bench)
            for at, injection in (known[pair] for pair in pairs):
                part = f"p{case.prompt_id}__s{case.seed}__{at:05d}"
                jobs.append(self._job(case, Confirm(part, case, steps, injection), DRIFT, part, cost))
        self._work(jobs)

    def time(self) -> None:
        """Times the modules of all candidates in this process, after the others have ended."""
        for slot in self._slots[1:]:
            slot.close()
        if not self.spec.rounds:
            return
        case, steps = next(iter(self.plan.steps.items()))
        chunks = in_chunks(self.plan.injections, [1.0] * len(self.plan.injections), _MOST_PASSES)
        jobs = []
        for number, (chunk, costs) in enumerate(chunks):
            part = f"{number:05d}"
            task = TimeModules(part, case, steps[0], steps, chunk, self.spec.rounds)
            jobs.append(self._job(case, task, SECONDS, part, sum(costs)))
        self._work(jobs, self._slots[:1])

    def finish(self) -> None:
        """Writes the tables of the scan from the parts."""
        out, rows, noise = self.run.out, self._sorted(SENSITIVITY), self._sorted(NOISE)
        if not tables.merged_path(out, SENSITIVITY).exists():
            rows = rows.drop(columns=["free_drift", "seconds_saved", "noise_floor"])
            drift = tables.read(out, DRIFT).drop(columns="num_nonfinite")
            rows = rows.merge(drift, "left", ["group", "candidate", "prompt_id", "seed"])
            rows = rows.merge(tables.read(out, SECONDS), "left", ["group", "candidate"])
            rows["noise_floor"] = _floors(rows, noise)
        tables.write(out, NOISE, noise)
        tables.write(out, SENSITIVITY, rows)
        for table in (DRIFT, SECONDS):
            tables.remove_parts(out, table)

    def _write_groups(self) -> None:
        """Writes the tables that need no measurement."""
        out, unfit = self.run.out, self.plan.unfit
        tables.write(out, GROUPS, pd.DataFrame([row for group in self.plan.groups for row in self._stored(group)]))
        reasons = [{"group": each.group.name, "candidate": each.candidate, "reason": each.reason} for each in unfit]
        tables.write(out, UNFIT, pd.DataFrame(reasons))

    def _stored(self, group: Group) -> Iterator[dict[str, Any]]:
        for address in group.sites:
            stored = storage(self.plan.sites[address].module)
            yield {"group": group.name, "site": address, "num_weights": stored.weights, "stored_bits": stored.bits}

    def _sorted(self, table: str) -> pd.DataFrame:
        """The rows of all parts: by case, then in the order of the plan."""
        frame = tables.read(self.run.out, table)
        return frame.sort_values(["prompt_id", "seed"], kind="stable", ignore_index=True)

    def _job(self, case: Case, task: Task, table: str, part: str, cost: float) -> Job:
        return Job(self.run.reference, case, task, f"{table}/{part}", cost)

    def _work(self, jobs: Sequence[Job], workers: Sequence[Slot] | None = None) -> None:
        left = []
        for job in jobs:
            if tables.is_written(self.run.out, *job.part.split("/")):
                self._advance(job.steps, "resumed")
            else:
                left.append(job)
        Schedule(left, self._carry, self._lost, lambda case: None).work(workers or self._slots)

    def _carry(self, slot: Slot, job: Job) -> None:
        """Carries out a job in a slot, and writes what it leaves."""
        try:
            files = slot.perform(job.variant.process, job.task, self._advance)
        except (InputError, WorkerLostError):
            raise
        except (Exception, SystemExit) as error:
            if self._ended or is_of_the_disk(error, self.run.out):
                raise
            failure = error.failure if isinstance(error, TaskError) else Failure.of(error, self.plan.bench.layout)
            path = failure.write(self.run.out, "sensitivity")
            raise VariantError(f"The scan failed: {failure.message}. Traceback: {path}") from error
        if self._ended:
            return
        for file in files:
            file.write(self.run.out)
        with self._reporting:
            new = worker_entry(slot)
            entry = self._made.get(new.key, new)
            self._made[new.key] = replace(entry, parts=sorted({*entry.parts, job.part}))
        if not slot.reports_steps:
            self._advance(job.steps, slot.name)

    def _lost(self, job: Job, error: WorkerLostError) -> None:
        raise InputError(f"{error} twice during {job.part}: a crash, or too little memory. resume=true continues")

    def _advance(self, amount: float, label: str) -> None:
        with self._reporting:
            self.progress.advance(amount, label)

    def _check_parts(self) -> None:
        """Raises InputError that names the first damaged file of a folder that is resumed."""
        with advising("Remove it: resume=true makes it again"):
            for table in (*KEPT, DRIFT, SECONDS):
                tables.read(self.run.out, table)

    def _write_manifest(self, status: Status) -> None:
        run, variant, planned = self.run, scanned_variant(self.plan.bench), self.plan.plan
        Manifest(
            status=status,
            experiment=run.experiment,
            command=list(run.command),
            started=self._started,
            finished=None if status == "running" else _now(),
            environment=Environment(**self._slots[0].worker.environment),
            checkpoint=run.source.checkpoint,
            layout=self.plan.bench.layout,
            case=dict(run.settings),
            reference=Reference(REFERENCE, variant.dtype),
            baseline=REFERENCE,
            variants={REFERENCE: variant_entry(variant, planned.linears[variant.name], planned.weights[variant.name])},
            prompts=list(run.prompts),
            seeds=list(run.seeds),
            latency_margin=self.plan.plan.margin,
            notes=list(self.plan.notes),
            workers=list(self._made.values()),
        ).write(run.out)


def _floors(rows: pd.DataFrame, noise: pd.DataFrame) -> pd.Series:
    """The noise floor of each row: of its operation, or the largest of all where that has none."""
    keys = ["prompt_id", "seed", "step"]
    if noise.empty:
        return pd.Series(float("nan"), rows.index)
    alike = [*keys, "component", "operation", "stream"]
    own = noise.groupby(alike, dropna=False)["velocity_error"].max().rename("own").reset_index()
    largest = noise.groupby(keys)["velocity_error"].max().rename("largest").reset_index()
    found = rows[alike].merge(own, "left", alike).merge(largest, "left", keys)
    floors: pd.Series = found["own"].fillna(found["largest"])
    return floors


def _branches(bench: Bench) -> int:
    """Passes of the model in one step of a generation, about."""
    return max(1, len(bench.layout.branches))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
