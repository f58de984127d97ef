"""Parallel generations: this process and others that share the run folder take them from one list.

The result of a generation does not depend on the process that runs it. Timing comes later, after the other processes
have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Condition, Thread
from typing import Any, NamedTuple

from precision_lab.device.environment import backend
from precision_lab.device.sgemm import cores
from precision_lab.lab.spec import RunSpec, Variant
from precision_lab.lab.subject import Case

MOST = 4
"""Default maximum of processes, if there are enough cores; a generation uses little more than one CPU core."""

_WORTH_STEPS = 60
"""Minimum of denoising steps in a run for which starting another process saves time."""

_LARGEST_WEIGHTS = 256 << 20
"""Maximum size of the weights in bytes for several processes, since each holds a copy."""


def workers(spec: RunSpec, steps: int, weight_bytes: int) -> int:
    """Number of processes that generate in parallel: from the spec, or one per CPU core, at most `MOST`, if that
    saves time.

    steps: the denoising steps of all generations; weight_bytes: the size of one copy of the model.
    """
    if spec.workers is not None:
        return spec.workers
    if backend() != "cpu" or weight_bytes > _LARGEST_WEIGHTS or steps < _WORTH_STEPS:
        return 1
    return min(cores(), MOST)


class Generation(NamedTuple):
    """One case to generate with one variant."""

    variant: Variant
    case: Case


Make = Callable[[Generation], None]


class Crew:
    """Distributes the generations of a run. The first worker runs the references; other variants follow theirs.

    With helpers, all references run first, so that no worker waits for one. Without helpers, each case is completed
    before the next begins.
    """

    def __init__(self, variants: Sequence[Variant], cases: Sequence[Case], finished: Callable[[Case], None]):
        """finished: called with each case when all its variants are complete."""
        self._waiting = [Generation(variant, case) for case in cases for variant in variants]
        self._left = {case: len(variants) for case in cases}
        self._finished = finished
        self._referenced: set[tuple[str, Case]] = set()
        self._problem: BaseException | None = None
        self._changed = Condition()

    def work(self, first: Make, helpers: Sequence[Make], own: Callable[[], None]) -> None:
        """Returns when all generations are complete and `own`, which only the first worker can run, has returned.

        Raises the first exception of a worker after the running generations have ended; KeyboardInterrupt immediately.
        """
        threads = [
            Thread(target=self._guarded, args=(self._take, helper, _is_other), daemon=True) for helper in helpers
        ]
        for thread in threads:
            thread.start()
        if helpers:
            self._guarded(self._take, first, _is_reference)
        else:
            self._guarded(self._take, first, _is_any)
        self._guarded(own)
        self._guarded(self._take, first, _is_any)
        if not isinstance(self._problem, KeyboardInterrupt):
            for thread in threads:
                thread.join()
        if self._problem is not None:
            raise self._problem

    def _guarded(self, part: Callable[..., None], *args: Any) -> None:
        """Runs `part` unless a worker has failed; records its exception, which stops all workers."""
        if self._problem is not None:
            return
        try:
            part(*args)
        except BaseException as error:
            with self._changed:
                self._problem = self._problem or error
                self._changed.notify_all()

    def _take(self, make: Make, able: Callable[[Generation], bool]) -> None:
        while (generation := self._next(able)) is not None:
            make(generation)
            self._done(generation)

    def _next(self, able: Callable[[Generation], bool]) -> Generation | None:
        """Waits for a generation that this worker can run; returns None if none remains or a worker has failed."""

        def ready() -> list[Generation]:
            return [g for g in self._waiting if able(g) and self._referenced >= {(n, g.case) for n in g.variant.needs}]

        with self._changed:
            self._changed.wait_for(lambda: self._problem or ready() or not any(map(able, self._waiting)))
            if self._problem is not None or not (candidates := ready()):
                return None
            self._waiting.remove(candidates[0])
            return candidates[0]

    def _done(self, generation: Generation) -> None:
        with self._changed:
            if _is_reference(generation):
                self._referenced.add((generation.variant.name, generation.case))
            self._left[generation.case] -= 1
            if not self._left[generation.case]:
                self._finished(generation.case)
            self._changed.notify_all()


def _is_reference(generation: Generation) -> bool:
    return generation.variant.is_reference


def _is_other(generation: Generation) -> bool:
    return not _is_reference(generation)


def _is_any(generation: Generation) -> bool:
    return True
