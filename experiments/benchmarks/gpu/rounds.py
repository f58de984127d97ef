"""Interleaved rounds in random order, so that a temporary slowdown of the machine affects all arms equally."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.gpu.store import PartWriter

WARMUP_ROUNDS = 2
"""The first round compiles kernels; the second runs with compiled kernels."""

MAX_ROUNDS = 40


class Arm(NamedTuple):
    """A timed alternative: `tags` identify it; `sample` sets it up untimed and returns the measured seconds."""

    tags: Mapping[str, Any]
    sample: Callable[[], Mapping[str, float]]


def measure(writer: PartWriter, arms: Sequence[Arm], deadline: float, min_rounds: int, seed: int = 0) -> None:
    """Writes rows of kind "time", one per arm and round, until `deadline` (time.perf_counter), at least `min_rounds`.

    Every arm runs once per round, in a new random order. An arm that raises is excluded afterwards, and a row of kind
    "error" replaces its samples.
    """
    rng = np.random.default_rng(seed)
    alive = dict(enumerate(arms))
    for index in range(-WARMUP_ROUNDS, MAX_ROUNDS):
        for order, key in enumerate(rng.permutation(list(alive))):
            arm = alive[int(key)]
            try:
                taken = arm.sample()
            except Exception as error:
                record_error(writer, arm.tags, error)
                del alive[int(key)]
                continue
            if index >= 0:
                writer.add("time", **arm.tags, round=index, order=order, **taken)
        writer.save()
        if not alive or (index + 1 >= min_rounds and time.perf_counter() > deadline):
            return


def record_error(writer: PartWriter, tags: Mapping[str, Any], error: Exception) -> None:
    """Adds a row with the reason why something was not measured; other measurements continue."""
    print("  failed:", dict(tags), repr(error)[:300], flush=True)
    traceback.print_exception(error, limit=-4)
    writer.add("error", **tags, error=f"{type(error).__name__}: {error}"[:600])
    writer.save()
