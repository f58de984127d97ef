"""Measures the time of one denoising step for each variant, in interleaved rounds of random order without probes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from precision_lab.device.environment import backend
from precision_lab.lab.measures import LatencySpec
from precision_lab.numerics.intervals import paired_ratio, simultaneous_confidence


class Sample(NamedTuple):
    """One timed step. yardstick_seconds: the time of `yardstick` just before it; NaN if that was not measured."""

    seconds: float
    peak_memory_bytes: int
    yardstick_seconds: float = math.nan


# Sizes at which the yardstick takes milliseconds: on a CPU mostly single operations, on a GPU mostly its products.
_SIDE = {"cpu": 128, "cuda": 4096, "metal": 2048}
_PRODUCTS = 4
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
            sample = samplers[str(name)]()
            if index >= 0:
                seconds[str(name)].append(sample.seconds)
                rows.append(
                    {
                        "variant": str(name),
                        "round": index,
                        "order": order,
                        "what": "step",
                        **sample._asdict(),
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
    yardstick_seconds = yardstick()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    start = time.perf_counter()
    mx.eval(step())
    mx.synchronize()
    seconds = time.perf_counter() - start
    return Sample(seconds, weights_nbytes + max(0, mx.get_peak_memory() - before), yardstick_seconds)


def yardstick() -> float:
    """The time in seconds of a fixed computation on the default device: products in bfloat16, softmaxes in fp32.

    It tells a slower machine from slower code: machines that name the same processor differ by a factor of three.
    """
    x = _of_yardstick(_SIDE[backend()])
    mx.synchronize()
    start = time.perf_counter()
    mx.eval(_products(x))
    mx.synchronize()
    return time.perf_counter() - start


@lru_cache(maxsize=1)
def _of_yardstick(side: int) -> mx.array:
    x = mx.array(np.random.default_rng(_SEED).standard_normal((side, side), np.float32)).astype(mx.bfloat16)
    mx.eval(x)
    return x


def _products(x: mx.array) -> mx.array:
    weight = x
    for _ in range(_PRODUCTS):
        x = mx.softmax((x @ weight).astype(mx.float32), axis=-1).astype(mx.bfloat16)
    return x


def _resolved(seconds: Mapping[str, Sequence[float]], baseline: str, margin: float) -> bool:
    others = [name for name in seconds if name != baseline]
    confidence = simultaneous_confidence(max(1, len(others)))
    return all(paired_ratio(seconds[name], seconds[baseline], confidence).half_width <= margin / 2 for name in others)
