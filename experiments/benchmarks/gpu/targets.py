"""The project's targets beside what a record measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.benchmarks.gpu.composition import own_operations
from experiments.benchmarks.gpu.shapes import SHAPES, Targets
from experiments.benchmarks.gpu.summary import (
    FAST,
    PLAIN,
    best_peer,
    dense_memory,
    forward_results,
    probe_results,
    stored_results,
)
from precision_lab.numerics.intervals import Ratio


@dataclass(frozen=True)
class Judged:
    """A target: an upper limit of what was measured, which is a ratio or GB, with the interval of a ratio."""

    subject: str
    measured: float
    interval: Ratio | None
    limit: float

    @property
    def met(self) -> bool:
        return self.measured <= self.limit


def judged(record: Mapping[str, Any]) -> list[Judged]:
    """The targets of the record's shape for which something was measured."""
    shapes = {part["environment"]["shape"] for part in record["parts"].values()}
    if len(shapes) != 1:
        return []
    targets = SHAPES[shapes.pop()].targets
    return [*_forward(record, targets), *_probes(record, targets), *_stored(record, targets)]


def _forward(record: Mapping[str, Any], targets: Targets) -> Iterator[Judged]:
    results = forward_results(record)
    fast = {result.side: result for result in results if result.arm == FAST}
    for side, limit in targets.best_peer.items():
        peer = best_peer(results, side)
        if peer is not None and peer.fast_ratio is not None:
            subject = f"{FAST} / best peer ({peer.arm}), {side} x {side}"
            yield Judged(subject, peer.fast_ratio.estimate, peer.fast_ratio, limit)
    for side, limit in targets.own_operations.items():
        own = own_operations(record, side)
        if side in fast and own:
            subject = f"{FAST} / its own products and attention, {side} x {side}"
            yield Judged(subject, fast[side].median / own, None, limit)
    for side, limit in targets.peak_gb.items():
        if side in fast and fast[side].peak_gb is not None:
            yield Judged(f"peak memory of {FAST}, GB, {side} x {side}", fast[side].peak_gb, None, limit)


def _probes(record: Mapping[str, Any], targets: Targets) -> Iterator[Judged]:
    for result in probe_results(record):
        if result.probes in targets.probes and result.arm in (FAST, PLAIN):
            subject = f"range catalogue, {result.arm}, {result.probes}, {result.side} x {result.side}"
            yield Judged(subject, result.ratio.estimate, result.ratio, targets.probes[result.probes])


def _stored(record: Mapping[str, Any], targets: Targets) -> Iterator[Judged]:
    for result in stored_results(record):
        what = f"{result.format}, {result.side} x {result.side}"
        if result.route != "measured" or result.way != "forward":
            continue
        if (result.format, result.side) in targets.stored:
            limit = targets.stored[result.format, result.side]
            yield Judged(f"{FAST} with {what} / bfloat16", result.ratio.estimate, result.ratio, limit)
        dense, limit_gb = dense_memory(record, result.side), targets.stored_beyond_gb
        if limit_gb is not None and result.beyond_gb is not None and result.coded_gb is not None and dense is not None:
            # not of what packing leaves in memory, in which a second copy of the weights would hide
            beyond = result.beyond_gb - result.coded_gb - dense
            yield Judged(f"memory of {what} beyond its codes and what bfloat16 needs, GB", beyond, None, limit_gb)
