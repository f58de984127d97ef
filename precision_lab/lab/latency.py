"""Measures the time of one denoising step for each variant, in interleaved rounds of random order without probes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from precision_lab.lab.measures import LatencySpec
from precision_lab.numerics.intervals import paired_ratio, simultaneous_confidence


class Sample(NamedTuple):
    """One timed step."""

    seconds: float
    peak_memory_bytes: int


DEFAULT_MARGIN = {"cpu": 0.05, "cuda": 0.01, "metal": 0.01}
_SEED = 0


def measure(
    samplers: Mapping[str, Callable[[], Sample]],
    baseline: str,
    spec: LatencySpec,
    margin: float,
    on_round: Callable[[float], None] = lambda share: None,
) -> list[dict[str, Any]]:
    """Rows of the latency table, one per variant and round.

    `samplers[name]()` sets the variant up, untimed, and times it once. After at least `min_rounds`, rounds end when the
    half-width of every paired ratio's interval is at most half the margin, when `max_seconds` have passed, or at
    `max_rounds`.
    """
    if spec.max_rounds == 0:
        return []
    rng = np.random.default_rng(_SEED)
    names = list(samplers)
    rows: list[dict[str, Any]] = []
    seconds: dict[str, list[float]] = {name: [] for name in names}
    started = time.perf_counter()
    for index in range(-spec.warmup_rounds, spec.max_rounds):
        for order, name in enumerate(rng.permutation(names)):
            elapsed, peak = samplers[str(name)]()
            if index >= 0:
                seconds[str(name)].append(elapsed)
                rows.append(
                    {
                        "variant": str(name),
                        "round": index,
                        "order": order,
                        "what": "step",
                        "seconds": elapsed,
                        "peak_memory_bytes": peak,
                    }
                )
        done = index + 1
        spent = time.perf_counter() - started
        on_round(max(done / spec.max_rounds, min(spent / spec.max_seconds, done / max(spec.min_rounds, 1))))
        if done >= spec.min_rounds and (spent > spec.max_seconds or _resolved(seconds, baseline, margin)):
            break
    return rows


def sample(step: Callable[[], mx.array], weights_nbytes: int, settle: bool = False) -> Sample:
    """Times a step in seconds and measures its memory in bytes: its own weights and its allocations.

    The memory of other variants does not count. settle: whether to run one untimed step first. On a GPU, the first step
    after a change of variant also allocates memory and builds graphs, unlike the later steps of a generation.
    """
    if settle:
        mx.eval(step())
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    start = time.perf_counter()
    mx.eval(step())
    mx.synchronize()
    seconds = time.perf_counter() - start
    return Sample(seconds, weights_nbytes + max(0, mx.get_peak_memory() - before))


def _resolved(seconds: Mapping[str, Sequence[float]], baseline: str, margin: float) -> bool:
    others = [name for name in seconds if name != baseline]
    confidence = simultaneous_confidence(max(1, len(others)))
    return all(paired_ratio(seconds[name], seconds[baseline], confidence).half_width <= margin / 2 for name in others)
