"""The time of each piece of a block, and the ceilings of the device for comparison.

A sample is a graph that applies one piece often enough to take about 15 ms. It is built before the timer starts, and
the overhead of an evaluation, about 0.1 ms, is spread over the applications.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

from experiments.benchmarks.gpu import pieces
from experiments.benchmarks.gpu.part import Job
from experiments.benchmarks.gpu.pieces import Piece
from experiments.benchmarks.gpu.rounds import Arm, measure, record_error

MOST_CHAINED = 400
MOST_AT_ONCE = 24
"""Maximum number of applications of a piece that is not chained, since all its results are held until the end."""


def run(job: Job) -> None:
    arms = []
    for group in _groups(job):
        try:
            arms += [_arm(job, piece) for piece in group()]
        except Exception as error:
            record_error(job.writer, {"what": "pieces"}, error)
    measure(job.writer, arms, job.deadline, job.shape.min_rounds)


def _groups(job: Job) -> Iterator[Callable[[], Iterator[Piece]]]:
    yield lambda: pieces.ceilings(job.shape)
    yield from job.shape.module("pieces").groups(job.shape)


@dataclass
class _Repeated:
    """A piece and the number of applications per sample, which is unknown before the first sample."""

    piece: Piece
    least_seconds: float
    count: int = 0

    def sample(self) -> dict[str, float]:
        """Seconds of one application."""
        if not self.count:
            self._seconds(4)
            single = self._seconds(4) / 4
            most = MOST_CHAINED if self.piece.chained else MOST_AT_ONCE
            self.count = max(4, min(most, math.ceil(self.least_seconds / single)))
        return {"seconds": self._seconds(self.count) / self.count, "applications": self.count}

    def _seconds(self, count: int) -> float:
        x, results = self.piece.start, []
        for index in range(count):
            y = self.piece.step(x, index)
            if self.piece.chained:
                x = y
            else:
                results.append(y)
        mx.synchronize()
        start = time.perf_counter()
        mx.eval(x, results)
        mx.synchronize()
        return time.perf_counter() - start


def _arm(job: Job, piece: Piece) -> Arm:
    tags = {"piece": piece.name, "group": piece.kind, "way": piece.way, "tokens": piece.tokens}
    job.writer.add("piece", **tags, flops=piece.flops, nbytes=piece.nbytes, chained=piece.chained)
    return Arm(tags, _Repeated(piece, job.shape.chain_seconds).sample)
