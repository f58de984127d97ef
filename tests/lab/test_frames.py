"""Joined rows of probes equal dictionaries that are updated by one probe after the other."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest

from precision_lab.instrument.observation import Observation, Position
from precision_lab.lab.frames import frames_of
from precision_lab.lab.recorder import ProbeRecorder


def position(order: int) -> Position:
    return Position("cond", order // 4, 0.5, "transformer", f"block.{order}", "out", "img", order, order)


class Rows:
    """A recorder by rows, for any table."""

    sites, ports = ("**",), ("out",)

    def __init__(self, rows: list[dict[str, Any]], table: str = "activations"):
        self.rows, self.table = rows, table

    def observe(self, batch: list[Observation]) -> None:
        raise NotImplementedError


def recorder(orders: list[int], table: str = "activations", **scalars: list[Any]) -> Rows:
    places = [position(order)._asdict() for order in orders]
    values = [dict(zip(scalars, row, strict=True)) for row in zip(*scalars.values(), strict=True)]
    return Rows([{**place, **value} for place, value in zip(places, values, strict=True)], table)


def by_definition(recorders: list[Rows]) -> pd.DataFrame:
    joined: dict[int, dict[str, Any]] = {}
    for rows in recorders:
        for row in rows.rows:
            joined.setdefault(row["order"], {}).update(row)
    return pd.DataFrame([joined[order] for order in sorted(joined)])


@pytest.mark.parametrize("seed", range(8))
def test_they_are_joined_as_dictionaries_would_be(seed: int) -> None:
    rng = np.random.default_rng(seed)
    recorders = []
    for probe in range(4):
        whole = rng.random() < 0.3
        orders = list(range(9)) if whole else rng.permutation(9)[: rng.integers(1, 9)].tolist()
        shared, own = rng.standard_normal((2, len(orders))).tolist()
        counts = rng.integers(0, 9, len(orders)).tolist()
        recorders.append(recorder(orders, shared=shared, **{f"own_{probe}": own, f"num_{probe}": counts}))
    found = frames_of(recorders)["activations"]
    expected = by_definition(recorders)
    pd.testing.assert_frame_equal(found[sorted(found)], expected[sorted(expected)])
    assert list(found)[:9] == list(Position._fields)


def test_tables_of_their_own_come_first_and_whole() -> None:
    own = [recorder([0, 0, 1], "histograms", count=[1, 2, 3]), recorder([5], "histograms", count=[4])]
    found = frames_of([recorder([0], amax=[1.0]), *own])
    assert list(found) == ["histograms", "activations"]
    assert found["histograms"]["count"].tolist() == [1, 2, 3, 4]
    assert found["activations"]["amax"].tolist() == [1.0]


def test_nothing_seen_is_an_empty_table() -> None:
    assert frames_of([])["activations"].empty
    assert frames_of([ProbeRecorder(InColumns()), recorder([])])["activations"].empty


class InColumns:
    sites, ports = ("**",), ("out",)

    def measure(self, x: mx.array) -> dict[str, float]:
        return {"first": x[0].item()}

    def measure_each(self, arrays: list[mx.array]) -> dict[str, Any]:
        return {"first": np.array([x[0].item() for x in arrays])}


class OneByOne:
    sites, ports = ("**",), ("out",)

    def measure(self, x: mx.array) -> dict[str, mx.array | float]:
        return {"first": x[0], "size": x.size} if x.size > 1 else {"first": x[0]}


def test_a_probe_may_give_columns_or_scalars() -> None:
    batches = [[mx.array([1.5, 2.0]), mx.array([2.5])], [mx.array([3.5, 0.0, 0.0])]]
    recorders = [ProbeRecorder(InColumns()), ProbeRecorder(OneByOne())]
    for at, batch in enumerate(batches):
        for each in recorders:
            each.observe([Observation(position(2 * at + i), x) for i, x in enumerate(batch)])
    columns, scalars = (frames_of([each])["activations"] for each in recorders)
    assert columns["first"].tolist() == scalars["first"].tolist() == [1.5, 2.5, 3.5]
    assert columns[["dtype", "shape", "numel"]].values.tolist() == [
        ["float32", "2", 2],
        ["float32", "1", 1],
        ["float32", "3", 3],
    ]
    assert recorders[0].rows[2] == {**position(2)._asdict(), "dtype": "float32", "shape": "3", "numel": 3, "first": 3.5}
    assert [row["site"] for row in recorders[1].rows] == ["block.0", "block.1", "block.2"]
    assert math.isnan(scalars["size"][1])
    assert scalars["size"].tolist()[::2] == [2, 3]
