"""Free-running generations of variants that are chosen while a program runs: the evaluation of a search.

A trial is a generation as `precision_lab.lab.run` makes it, by the same code and in the same slots, so that every
metric of a run can be computed of it. It is named after its content. Its files are kept in the folder of the search
until the end, so that a killed search, started again, finds what it evaluated before. A reference is generated once for
each case.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Protocol
from uuid import uuid4

import pandas as pd

from precision_lab.errors import InputError, VariantError
from precision_lab.instrument.sites import Components
from precision_lab.lab import slots
from precision_lab.lab.bench import REFERENCES, Advance, Bench, part_name, reference_path
from precision_lab.lab.candidates import Make as MakeTechnique
from precision_lab.lab.engine import Slot, WorkerLostError
from precision_lab.lab.entries import manifest_of, now, variant_entry, worker_entry
from precision_lab.lab.failure import Failure, is_of_the_disk
from precision_lab.lab.folder import Identity, occupied
from precision_lab.lab.plan import plan
from precision_lab.lab.schedule import MOST_ATTEMPTS, Job, Schedule
from precision_lab.lab.spec import HERE, LOCAL, REFERENCE, RunSpec, Variant
from precision_lab.lab.subject import Case
from precision_lab.lab.tasks import Build, Make, Order, TaskError
from precision_lab.record import tables
from precision_lab.record.files import File, NotWrittenError, read_json, write_text
from precision_lab.record.lock import FolderLock
from precision_lab.record.manifest import Manifest, Status, VariantEntry, WorkerEntry
from precision_lab.record.run import CONFIG, Run, Tables
from precision_lab.techniques.parts.weight_storage import WeightStorage, model_storage, weight_storage

FOLDER = "trials"
"""The folder of the generations in that of a search: a run with one variant for each trial."""

_LAST_TABLE = "activations"
"""The table whose part is the last file that a generation leaves."""

_MANY_STEPS = 1_000
"""The denoising steps that a search is taken to need, when the number of processes is chosen."""


class Progress(Protocol):
    """Receives the progress in denoising steps; a trial that ends early counts as a whole one."""

    def advance(self, amount: float, label: str) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Trial:
    """A variant to evaluate.

    dtype: of the activations, the text of a `Compute`. nodes: of its techniques by name, in order of application, as
    plain values in the form of `conf/technique`. label: for the progress; no part of the identity.
    """

    dtype: str
    nodes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    label: str = field(default="trial", compare=False)

    @cached_property
    def key(self) -> str:
        """The name of the variant: a hash of dtype and techniques."""
        content = json.dumps([self.dtype, list(self.nodes.items())], sort_keys=True, default=str)
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def variant(self, make: MakeTechnique) -> Variant:
        """The variant of a run. Raises InputError for nodes that describe no techniques."""
        return Variant(self.key, self.dtype, {name: make(name, node) for name, node in self.nodes.items()})


@dataclass(frozen=True)
class Try:
    """The task of a trial: one generation. stops: whether it ends at the first step with a value that is not finite."""

    trial: Trial
    case: Case
    make: MakeTechnique
    stops: bool

    @property
    def references(self) -> tuple[Make, ...]:
        return (Make(REFERENCE, self.case),)

    def __call__(self, bench: Bench, advance: Advance) -> list[File]:
        return bench.make(self.trial.variant(self.make), self.case, (), advance, self.stops, self._stored)

    def _stored(self, components: Components) -> File:
        linears, whole = weight_storage(components), model_storage(components)
        stored = {name: {"linears": linears[name], "weights": whole[name]} for name in components}
        return File(_storage_path(self.trial).as_posix(), json.dumps(stored).encode())


def _storage_path(trial: Trial) -> Path:
    """The file, in the folder of trials, that says how the weights of a trial are stored."""
    return Path("storage") / f"{trial.key}.json"


class Trials:
    """Evaluates trials in the folder of `spec`, as a context manager that owns this folder.

    spec: what is recorded of every generation (probes, drift sites), the prompts and seeds of all cases, and the
    variants that are checked before anything is written; none is generated because of that. stops: whether a generation
    ends at the first step with a value that is not finite; it then has no picture. build: makes the spec again from its
    configuration, in other processes, and `make` a technique from its node, both importable by name.

    Raises InputError before anything is written if the spec cannot be run. A block that ends without an exception
    completes the folder; an interrupted search continues with `spec.resume`.
    """

    def __init__(
        self, spec: RunSpec, progress: Progress, make: MakeTechnique, build: Build | None = None, stops: bool = False
    ):
        planned = plan(spec)
        if planned.errors:
            name, failure = next(iter(planned.errors.items()))
            raise VariantError(f"{name}: {failure.message}")
        if spec.engine == LOCAL and build is not None:
            planned = replace(planned, workers=slots.workers(spec, _MANY_STEPS, planned.weight_bytes))
        self.plan, self.spec, self.bench = planned, spec, planned.bench
        self.folder = spec.out / FOLDER
        self.errors: dict[str, str] = {}
        self._progress, self._make, self._stops = progress, make, stops
        self._order = Order(spec.resolved, build, spec.out.absolute(), uuid4().hex)
        self._slots = slots.opened(planned, self._order)
        self._workers: dict[str, WorkerEntry] = {}
        self._reporting = Lock()
        self._started = now()

    @contextmanager
    def opened(self) -> Iterator[Trials]:
        """Context manager in which trials can be evaluated. Raises InputError if the folder cannot be taken."""
        spec, lock, here = self.spec, FolderLock(self.spec.out), self._slots[0].worker.environment
        identity = Identity(spec.source.checkpoint.fingerprint, here["device"], here["mlx"])
        try:
            with occupied(lock, spec.resume, spec.resolved, identity):
                if spec.resume:
                    self._workers = {entry.key: entry for entry in Manifest.read(spec.out).workers}
                write_text(spec.out / CONFIG, spec.resolved)
                self._write_manifest("running")
                self._order.marker.parent.mkdir(exist_ok=True)
                self._order.marker.touch()
                try:
                    for slot in self._slots:
                        slot.begin()
                    yield self
                except BaseException as error:
                    with suppress(InputError):  # where the disk is full, the manifest cannot say so
                        self._write_manifest("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
                    if isinstance(error, NotWrittenError | WorkerLostError):
                        raise InputError(f"{error}. What was finished is kept; resume=true continues") from error
                    raise
                tables.merge(self.folder)
                shutil.rmtree(spec.out / REFERENCES, ignore_errors=True)
                self._write_manifest("complete")
        finally:
            for slot in self._slots:
                slot.close()

    def evaluate(self, trials: Sequence[Trial], cases: Sequence[Case]) -> Run:
        """The run of these trials on these cases, of which those that are not there yet are generated.

        Its variants are the reference and the trials, by their keys. The generations are independent of each other, so
        they are shared by all slots. A trial that raised has an entry in the manifest's errors.
        """
        steps = {case: self.bench.steps(case) for case in cases}
        jobs = [
            Job(reference, case, Make(reference.name, case), part_name(reference, case), steps[case])
            for reference in self.spec.references[:1]
            for case in cases
            if not self._is_made(reference.name, case) or not self._is_kept(reference.name, case)
        ]
        unique = {trial.key: trial for trial in trials}
        for trial in unique.values():
            if trial.key in self.errors:
                continue
            variant = trial.variant(self._make)
            jobs += [
                Job(variant, case, Try(trial, case, self._make, self._stops), part_name(variant, case), steps[case])
                for case in cases
                if not self._is_made(trial.key, case)
            ]
        labels = {trial.key: trial.label for trial in trials}

        def carry(slot: Slot, job: Job) -> None:
            self._carry(slot, job, labels.get(job.variant.name, job.variant.name))

        if jobs:
            Schedule(jobs, carry, self._lost, lambda case: None).work(self._slots)
        return self._run(unique, cases)

    def is_evaluated(self, trial: Trial, case: Case) -> bool:
        """Whether a generation is there, so that `evaluate` would only read it."""
        return self._is_made(trial.key, case)

    def _is_made(self, name: str, case: Case) -> bool:
        return tables.part_path(self.folder, _LAST_TABLE, f"{name}__p{case.prompt_id}__s{case.seed}").exists()

    def _is_kept(self, reference: str, case: Case) -> bool:
        return reference_path(self.spec.out, reference, case).exists()

    def _carry(self, slot: Slot, job: Job, label: str) -> None:
        done = 0.0

        def advance(amount: float, _: str) -> None:
            nonlocal done
            done += amount
            self._advance(amount, label)

        try:
            files = slot.perform(HERE, job.task, advance)
        except (InputError, WorkerLostError):
            raise
        except (Exception, SystemExit) as error:
            if is_of_the_disk(error, self.spec.out):
                raise
            failure = error.failure if isinstance(error, TaskError) else Failure.of(error, self.bench.layout)
            self._failed(job.variant.name, failure)
            return
        with self._reporting:
            new = worker_entry(slot)
            entry = self._workers.get(new.key, new)
            self._workers[new.key] = replace(entry, parts=sorted({*entry.parts, job.part}))
        for file in files:
            file.write(self.folder)
        self._advance(job.steps - done, label)

    def _advance(self, amount: float, label: str) -> None:
        with self._reporting:
            self._progress.advance(amount, label)

    def _lost(self, job: Job, error: WorkerLostError) -> None:
        message = f"{error} {MOST_ATTEMPTS} times: a crash, or too little memory"
        self._failed(job.variant.name, Failure(message, f"{message}\n"))

    def _failed(self, name: str, failure: Failure) -> None:
        """Records what a trial raised. Raises VariantError for the reference."""
        self.errors[name] = failure.message
        path = failure.write(self.spec.out, name)
        if name == REFERENCE:
            message = f"{name} failed, and nothing can be compared without it: {failure.message}"
            raise VariantError(f"{message}. Traceback: {path}")

    def _run(self, trials: Mapping[str, Trial], cases: Sequence[Case]) -> Run:
        manifest = self._manifest("running")
        reference = manifest.variants[REFERENCE]
        entries = {REFERENCE: reference, **{key: self._entry(trial) for key, trial in trials.items()}}
        parts = [f"{name}__p{case.prompt_id}__s{case.seed}" for name in entries for case in cases]

        def read(table: str) -> pd.DataFrame:
            paths = [tables.part_path(self.folder, table, part) for part in parts]
            frames = [tables.read_part(path, table) for path in paths if path.exists()]
            frames = [frame for frame in frames if len(frame)]
            return pd.concat(frames, ignore_index=True) if frames else tables.empty(table)

        errors = {key: message for key, message in self.errors.items() if key in entries}
        return Run(self.folder, replace(manifest, variants=entries, errors=errors), Tables(read))

    def _entry(self, trial: Trial) -> VariantEntry:
        """The entry of a trial in a manifest, without storage if it raised."""
        path = self.folder / _storage_path(trial)
        stored = read_json(path) if path.exists() else {}
        linears, weights = (
            {name: WeightStorage(*each[kind]) for name, each in stored.items()} for kind in ("linears", "weights")
        )
        return variant_entry(trial.variant(self._make), linears, weights)

    def _manifest(self, status: Status) -> Manifest:
        worker = self._slots[0].worker
        return manifest_of(self.plan, status, self._started, worker, self.errors, (), list(self._workers.values()))

    def _write_manifest(self, status: Status) -> None:
        self._manifest(status).write(self.spec.out)
