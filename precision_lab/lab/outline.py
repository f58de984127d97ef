"""What a run is about to do, in a few lines, and about how long it takes once its first steps are timed."""

from __future__ import annotations

import threading
import time

from precision_lab.lab.plan import Plan
from precision_lab.lab.spec import LOCAL
from precision_lab.record.origin import wording


def outline(plan: Plan) -> list[str]:
    """Sentences on the generations, what is measured, the weights, the memory and the folder of a run."""
    spec, layout = plan.spec, plan.bench.layout
    counts = [plan.bench.steps(spec.case(variant, case)) for variant in spec.all_variants for case in spec.cases]
    steps = _number(min(counts), "step") if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)} steps"
    where = f", in {plan.workers} processes" if plan.workers > 1 else ""
    first = (
        f"{spec.experiment}: {_number(len(spec.variants), 'variant')} and "
        f"{_number(len(spec.references), 'reference')} x {_number(len(spec.prompts), 'prompt')} x "
        f"{_number(len(spec.seeds), 'seed')} x {steps}: {_number(len(counts), 'generation')}, "
        f"{_number(plan.steps, 'step')}{where if spec.engine == LOCAL else f', {spec.engine}'}"
    )
    lines = [first]
    measured = [f"{name} ({', '.join(map(str, probe.ports))})" for name, probe in spec.probes.items()]
    measured.append(f"drift of {layout.result.title}")
    if spec.teacher.mode != "off":
        measured.append(f"local error ({spec.teacher.mode})")
    if layout.picture is not None:
        measured.append("pictures")
    if spec.pinned.recorded:
        measured.append(_number(len(spec.pinned.recorded), "pinned case"))
    timing = spec.latency
    if timing.max_rounds:
        measured.append(f"time of a step ({timing.min_rounds} to {timing.max_rounds} rounds, {timing.max_seconds:g} s)")
    if spec.claims:
        measured.append(_number(len(spec.claims), "claim"))
    lines.append(f"measured: {', '.join(measured)}")
    checkpoint = spec.source.checkpoint
    streamed = bool(checkpoint.resources.get("stream"))
    lines.append(
        f"weights: {checkpoint.path}, {wording(checkpoint.weights, checkpoint.path).phrase}, "
        f"{plan.weight_bytes / 1e9:.3g} GB" + (", blocks read when they are called" if streamed else "")
    )
    if plan.memory:
        lines.append(f"memory: at least {plan.memory / 1e9:.3g} GB beside what a step computes")
    lines.append(f"folder: {spec.out}")
    return lines


class WarmUp:
    """Times the first steps of a run, which are those of the run itself: nothing is computed twice.

    total: of the steps; the timing of steps at the end counts as steps. workers: that share them.
    """

    def __init__(self, total: float, workers: int):
        self._total, self._workers = total, max(1, workers)
        self._last: dict[int, float] = {}
        self._is_told = False

    def sentence(self, amount: float, label: str) -> str | None:
        """About how long the run takes; once, after the second step that one thread reports."""
        if self._is_told or amount != 1:
            return None
        now, thread = time.monotonic(), threading.get_ident()
        before = self._last.setdefault(thread, now)
        if before == now:
            return None
        self._is_told = True
        seconds, name = now - before, label.partition(",")[0]
        return (
            f"a step of {name} takes {_duration(seconds)} with all that is measured: "
            f"about {_duration(seconds * self._total / self._workers)} for this run"
        )


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _duration(seconds: float) -> str:
    """Seconds in the unit that fits: 0.16 s, 42 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
