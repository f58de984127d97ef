"""The order of a run's tasks: each slot takes the next one whose references are complete.

What moves between slots is a case with its reference: a slot finishes the case that it began before it takes another,
and helps with those of others at the end. The result of a task does not depend on the slot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition, Thread

from precision_lab.lab.engine import Slot, WorkerLostError
from precision_lab.lab.spec import Variant
from precision_lab.lab.subject import Case
from precision_lab.lab.tasks import Task

_WORTH_REPEATING = 3
"""Least number of waiting generations of a case for which another slot makes its reference again."""

MOST_ATTEMPTS = 2
"""Processes that a task may end before it counts as failed."""


@dataclass(frozen=True, eq=False)
class Job:
    """A task of the schedule. case: None if it belongs to none of the run's. part: the name of what it leaves.

    steps: of denoising, for the progress.
    """

    variant: Variant
    case: Case | None
    task: Task
    part: str
    steps: float = 1.0


Carry = Callable[[Slot, Job], None]


class Schedule:
    """The jobs of a run and the slots that share them. A job waits for the references of its case."""

    def __init__(
        self,
        jobs: Sequence[Job],
        carry: Carry,
        lost: Callable[[Job, WorkerLostError], None],
        finished: Callable[[Case], None],
    ):
        """carry: carries out a job in a slot. lost: called with a job that has ended `MOST_ATTEMPTS` processes.

        finished: called with each case of which no job is left.
        """
        self._waiting = list(jobs)
        self._carry, self._lost, self._finished = carry, lost, finished
        self._running: list[Job] = []
        self._taken: dict[Slot, Case] = {}  # the last case that each slot has taken, while it works
        self._attempts: Counter[Job] = Counter()
        self._problem: BaseException | None = None
        self._changed = Condition()

    def work(self, slots: Sequence[Slot]) -> None:
        """Returns when all jobs are done. The first slot works in this thread.

        Raises the first exception of a job after the running ones have ended; KeyboardInterrupt immediately.
        """
        threads = [Thread(target=self._guarded, args=(slot,), daemon=True) for slot in slots[1:]]
        for thread in threads:
            thread.start()
        self._guarded(slots[0])
        if not isinstance(self._problem, KeyboardInterrupt):
            for thread in threads:
                thread.join()
        if self._problem is not None:
            raise self._problem
        if self._waiting:
            raise WorkerLostError("no worker is left", is_gone=True)

    def _guarded(self, slot: Slot) -> None:
        """Carries out jobs until none is left; records an exception, which stops all slots."""
        try:
            while (job := self._next(slot)) is not None:
                try:
                    self._carry(slot, job)
                except WorkerLostError as error:
                    if error.is_gone:
                        self._leave(slot)
                    self._again(job, error)
                    if error.is_gone:
                        return
                else:
                    self._done(job)
        except BaseException as error:
            with self._changed:
                self._problem = self._problem or error
                self._changed.notify_all()

    def _leave(self, slot: Slot) -> None:
        with self._changed:
            self._taken.pop(slot, None)

    def _next(self, slot: Slot) -> Job | None:
        """Waits for a job that this slot can carry out; returns None if none remains or a slot has failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._problem or self._best(slot) or not self._remain())
            if self._problem is not None or (job := self._best(slot)) is None:
                return None
            if job.case is not None:
                self._taken[slot] = job.case
            self._waiting.remove(job)
            self._running.append(job)
            return job

    def _remain(self) -> bool:
        return bool(self._waiting or self._running)  # a running job may come back

    def _best(self, slot: Slot) -> Job | None:
        unfinished = {(job.variant.name, job.case) for job in (*self._waiting, *self._running) if job.case}
        held = Counter(job.case for job in self._waiting)

        def rank(job: Job) -> int | None:
            if any((needed, job.case) in unfinished for needed in job.variant.needs if job.case):
                return None
            if job.case is None:
                return 2
            if job.case == self._taken.get(slot):
                return 0
            if job.variant.is_reference:
                return 1
            left_behind = job.case not in self._taken.values()  # by a slot that is gone, or one that helped elsewhere
            helps = slot.shares_references or left_behind or held[job.case] >= _WORTH_REPEATING
            return 3 if helps else None

        ranked = [(place, number) for number, job in enumerate(self._waiting) if (place := rank(job)) is not None]
        return self._waiting[min(ranked)[1]] if ranked else None

    def _again(self, job: Job, error: WorkerLostError) -> None:
        with self._changed:
            self._attempts[job] += not error.is_gone  # without a worker, the job is not to blame
            failed = self._attempts[job] >= MOST_ATTEMPTS
        if failed:
            self._lost(job, error)
            self._done(job)
            return
        with self._changed:
            self._running.remove(job)
            self._waiting.insert(0, job)
            self._changed.notify_all()

    def _done(self, job: Job) -> None:
        with self._changed:
            self._running.remove(job)
            if job.case is not None and all(other.case != job.case for other in (*self._waiting, *self._running)):
                self._finished(job.case)
            self._changed.notify_all()
