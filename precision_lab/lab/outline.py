"""What a command is about to do, in a few lines, and about how long it takes once its first steps are timed."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol

from precision_lab.lab.plan import Plan
from precision_lab.lab.spec import LOCAL
from precision_lab.record.manifest import Checkpoint
from precision_lab.record.origin import wording


class Progress(Protocol):
    """Receives the progress of a command. `amount` is in steps, or in passes of the model."""

    def start(self, total: float) -> None: ...

    def advance(self, amount: float, label: str) -> None: ...

    def note(self, text: str) -> None: ...


def outline(plan: Plan) -> list[str]:
    """Sentences on the generations, what is measured, the weights, the memory and the folder of a run."""
    spec, layout = plan.spec, plan.bench.layout
    counts = [plan.bench.steps(spec.case(variant, case)) for variant in spec.all_variants for case in spec.cases]
    steps = counted(min(counts), "step") if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)} steps"
    where = f", in {plan.workers} processes" if plan.workers > 1 else ""
    first = (
        f"{spec.experiment}: {counted(len(spec.variants), 'variant')} and "
        f"{counted(len(spec.references), 'reference')} x {counted(len(spec.prompts), 'prompt')} x "
        f"{counted(len(spec.seeds), 'seed')} x {steps}: {counted(len(counts), 'generation')}, "
        f"{counted(plan.steps, 'step')}{where if spec.engine == LOCAL else f', {spec.engine}'}"
    )
    lines = [first]
    measured = [f"{name} ({', '.join(map(str, probe.ports))})" for name, probe in spec.probes.items()]
    measured.append(f"drift of {layout.result.title}")
    if spec.teacher.mode != "off":
        measured.append(f"local error ({spec.teacher.mode})")
    if layout.picture is not None:
        measured.append("pictures")
    if spec.pinned.recorded:
        measured.append(counted(len(spec.pinned.recorded), "pinned case"))
    timing = spec.latency
    if timing.max_rounds:
        measured.append(f"time of a step ({timing.min_rounds} to {timing.max_rounds} rounds, {timing.max_seconds:g} s)")
    if spec.claims:
        measured.append(counted(len(spec.claims), "claim"))
    return [*lines, *resources(plan, measured)]


def resources(plan: Plan, measured: Sequence[str]) -> list[str]:
    """Sentences on what is measured, the weights, the memory and the folder."""
    lines = [f"measured: {', '.join(measured)}", weights(plan.spec.source.checkpoint, plan.weight_bytes)]
    if plan.memory:
        lines.append(f"memory: at least {plan.memory / 1e9:.3g} GB beside what a step computes")
    return [*lines, f"folder: {plan.spec.out}"]


def weights(checkpoint: Checkpoint, nbytes: int | None = None) -> str:
    """A sentence on the weights. nbytes: of one copy, where they are known."""
    size = "" if nbytes is None else f", {nbytes / 1e9:.3g} GB"
    streamed = ", blocks read when they are called" if checkpoint.resources.get("stream") else ""
    return f"weights: {checkpoint.path}, {wording(checkpoint.weights, checkpoint.path).phrase}{size}{streamed}"


class WarmUp:
    """Times the first steps of a command, which are its own: nothing is computed twice.

    total: of the steps; the timing of steps at the end of a run counts as steps. workers: that share them. unit: what
    an amount of 1 is. whole: what the total is of.
    """

    def __init__(self, total: float, workers: int, unit: str = "step", whole: str = "this run"):
        self._total, self._workers = total, max(1, workers)
        self._unit, self._whole = unit, whole
        self._last: dict[int, float] = {}
        self._is_told = False

    def sentence(self, amount: float, label: str) -> str | None:
        """About how long it takes; once, after the second step that one thread reports.

        Larger amounts are whole tasks, maybe those that an interrupted command had finished: they say nothing of time.
        """
        if self._is_told or not 0 < amount <= 1:
            return None
        now, thread = time.monotonic(), threading.get_ident()
        before = self._last.setdefault(thread, now)
        if before == now:
            return None
        self._is_told = True
        seconds, name = (now - before) / amount, label.partition(",")[0]
        article = "an" if self._unit[0] in "aeiou" else "a"
        return (
            f"{article} {self._unit} of {name} takes {_duration(seconds)} with all that is measured: "
            f"about {_duration(seconds * self._total / self._workers)} for {self._whole}"
        )


class Estimating:
    """Progress that says once, after the first steps, about how long all of it takes. workers, unit, whole: of WarmUp.

    The total is that of the first `start`, unless it is 0; the workers may be set until then.
    """

    def __init__(self, progress: Progress, workers: int = 1, unit: str = "step", whole: str = "this run"):
        self.workers = workers
        self._progress, self._unit, self._whole = progress, unit, whole
        self._warm_up: WarmUp | None = None

    def start(self, total: float) -> None:
        if self._warm_up is None and total > 0:
            self._warm_up = WarmUp(total, self.workers, self._unit, self._whole)
        self._progress.start(total)

    def advance(self, amount: float, label: str) -> None:
        self._progress.advance(amount, label)
        if self._warm_up is not None and (said := self._warm_up.sentence(amount, label)):
            self._progress.note(said)

    def note(self, text: str) -> None:
        self._progress.note(text)


def counted(count: int, noun: str, several: str = "") -> str:
    """`1 step`, `2,000 steps`. several: the plural, if it is irregular."""
    return f"{count:,} {noun if count == 1 else several or f'{noun}s'}"


def _duration(seconds: float) -> str:
    """Seconds in the unit that fits: 0.16 s, 42 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
