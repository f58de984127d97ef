"""Observers: the arrays that each receives, the time of delivery, and the arrays held in memory."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from precision_lab.instrument.observation import Observation, Position, rows_of
from precision_lab.lab import recorder as recorder_module
from precision_lab.lab.frames import frames_of
from precision_lab.lab.observing import observing
from precision_lab.lab.recorder import ProbeRecorder
from precision_lab.probes.ranges import RangeCatalogue


class Chain(nn.Module):
    def __init__(self, depth: int = 12):
        super().__init__()
        self.layers = [nn.Linear(8, 8) for _ in range(depth)]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x)
        return x


class Sums(NamedTuple):
    rows: list[mx.array]


class LazySum:
    """A lazy probe that sums each array and records the calls."""

    sites, ports, is_lazy = ("layers.*",), ("out",), True

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.reads: list[int] = []

    def measure(self, x: mx.array) -> dict[str, Any]:
        raise AssertionError("a lazy probe is not measured")

    def prepare(self, arrays: Sequence[mx.array]) -> Sums:
        self.batches.append(len(arrays))
        return Sums([mx.sum(x) for x in arrays])

    def columns(self, pending: Sequence[Sums]) -> dict[str, Any]:
        self.reads.append(len(pending))
        return {"total": np.array([row.item() for each in pending for row in each.rows])}


class Keeper:
    """An observer that receives arrays after their evaluation."""

    sites, ports = ("layers.*",), ("out",)

    def __init__(self) -> None:
        self.sums: list[float] = []

    def observe(self, batch: Sequence[Observation]) -> None:
        self.sums += [float(np.array(seen.array).sum(dtype=np.float32)) for seen in batch]


@pytest.fixture
def model() -> Chain:
    mx.random.seed(0)
    chain = Chain()
    mx.eval(chain.parameters())
    return chain


@pytest.mark.parametrize("group", [1, 5, 2048])
def test_a_lazy_probe_has_the_numbers_of_an_eager_one(model: Chain, group: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("precision_lab.lab.observing._GROUP", group)
    probe, keeper = LazySum(), Keeper()
    lazy, ranges = ProbeRecorder(probe), ProbeRecorder(RangeCatalogue(sites=("layers.*",)))
    x = mx.random.normal((4, 8))
    with observing({"model": model}, [lazy, keeper, ranges]):
        seen = model(model(x))
    assert probe.reads == []
    assert sum(probe.batches) == 24
    np.testing.assert_allclose(lazy.columns["total"], keeper.sums, rtol=1e-4, atol=1e-4)
    assert probe.reads == [len(probe.batches)]
    rows = frames_of([lazy, ranges])["activations"]
    assert rows["site"].tolist() == [f"layers.{i}" for i in range(12)] * 2
    assert rows["order"].tolist() == list(range(24))
    assert rows["numel"].tolist() == [32] * 24
    assert mx.array_equal(seen, model(model(x)))


def test_nothing_holds_what_only_lazy_probes_see(model: Chain, monkeypatch: Any) -> None:
    """Memory stays at a few arrays for any number of observations."""
    monkeypatch.setattr("precision_lab.lab.observing._GROUP", 2)
    probe = LazySum()
    x = mx.random.normal((1 << 15, 8))
    mx.eval(x)
    with observing({"model": model}, [ProbeRecorder(probe)]):
        before = mx.get_active_memory()
        for _ in range(4):
            x = model(x)
        mx.eval(x)
        gc.collect()
        held = mx.get_active_memory() - before
    assert probe.batches == [2] * 24
    assert held <= 4 * x.nbytes


def test_pending_statistics_are_read_before_there_are_too_many(model: Chain, monkeypatch: Any) -> None:
    monkeypatch.setattr("precision_lab.lab.observing._GROUP", 1)
    monkeypatch.setattr(recorder_module, "_MOST_PENDING", 5)
    probe = LazySum()
    lazy = ProbeRecorder(probe)
    with observing({"model": model}, [lazy]):
        model(mx.ones((1, 8)))
    assert probe.reads == [5, 5]
    assert len(rows_of(lazy.columns)) == 12
    assert probe.reads == [5, 5, 2]
    assert len(rows_of(lazy.columns)) == 12


def test_observe_takes_a_lazy_probe_too() -> None:
    """This is the case in a capture, which evaluates the arrays itself."""
    probe = LazySum()
    lazy = ProbeRecorder(probe)
    position = Position(None, None, None, "model", "layers.0", "out", "-", None, 0)
    lazy.observe([Observation(position, mx.array([1.0, 2.0]))])
    lazy.observe([Observation(position._replace(order=1), mx.array([5.0]))])
    assert [row["total"] for row in lazy.rows] == [3.0, 5.0]
