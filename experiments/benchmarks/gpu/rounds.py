"""Interleaved rounds in random order: whatever slows the machine for a while slows all arms alike."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.gpu.store import PartWriter

WARMUP_ROUNDS = 2
"""The first compiles kernels, the second finds them in place."""

MAX_ROUNDS = 40


class Arm(NamedTuple):
    """Something to time: `tags` tell it from the others, `sample` sets up outside the clock and gives the seconds."""

    tags: Mapping[str, Any]
    sample: Callable[[], Mapping[str, float]]


def measure(writer: PartWriter, arms: Sequence[Arm], deadline: float, min_rounds: int, seed: int = 0) -> None:
    """Rows of kind "time", one an arm and round, until `deadline` (of time.perf_counter) but at least `min_rounds`.

    Every arm runs once a round, in an order drawn anew. An arm that raises is left out from then on, with a row of kind
    "error" in place of its samples.
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
    """A row that says why something was not measured; the rest goes on."""
    print("  failed:", dict(tags), repr(error)[:300], flush=True)
    traceback.print_exception(error, limit=-4)
    writer.add("error", **tags, error=f"{type(error).__name__}: {error}"[:600])
    writer.save()
