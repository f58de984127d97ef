"""The decision table, cell by cell, and what must hold of it as a whole."""

import itertools
import math

import numpy as np
import pytest

from precision_lab.analysis.decision import TABLE, Position, decide

T = 0.25  # ratios from 0.8 to 1.25 make no difference
INTERVALS = {
    Position.BELOW: [(0.1, 0.5), (0.5, 0.79), (0.79, 0.79)],
    Position.INTO_FROM_BELOW: [(0.5, 0.8), (0.5, 0.9), (0.5, 1.0), (0.5, 1.1), (0.79, 1.25)],
    Position.WITHIN: [(0.8, 0.8), (0.8, 0.9), (0.9, 1.1), (1.0, 1.0), (1.1, 1.25), (0.8, 1.25)],
    Position.OUT_ABOVE: [(0.8, 1.3), (0.9, 2.0), (1.0, 1.3), (1.1, 1.3), (1.25, 1.26)],
    Position.ABOVE: [(1.26, 1.26), (1.26, 1.5), (2.0, 9.0)],
    Position.ACROSS: [(0.5, 1.5), (0.79, 1.26)],
}
S, R, I = "supported", "refuted", "inconclusive"  # noqa: E741
# relation -> verdicts below, into from below, within, out above, above, across; the tolerance is the margin
BY_MARGIN = {
    "larger": (R, R, R, I, S, I),
    "smaller": (S, I, R, R, R, I),
    "equal": (R, I, S, I, R, I),
    "not_larger": (S, S, S, I, R, I),
    "not_smaller": (R, I, S, S, S, I),
}
# the tolerance is the noise floor: below it, nothing is known of a difference
BY_NOISE = BY_MARGIN | {"larger": (R, I, I, I, S, I), "smaller": (S, I, I, I, R, I)}
CELLS = [
    (relation, position, margin, floor, verdict)
    for (margin, floor), table in (
        ((T, math.nan), BY_MARGIN),
        ((T, 0.1), BY_MARGIN),
        ((0.0, T), BY_NOISE),
        ((0.1, T), BY_NOISE),
    )
    for relation, verdicts in table.items()
    for position, verdict in zip(Position, verdicts, strict=True)
]


@pytest.mark.parametrize(("relation", "position", "margin", "floor", "verdict"), CELLS, ids=str)
def test_each_cell(relation, position, margin, floor, verdict):
    for lo, hi in INTERVALS[position]:
        assert Position.of(lo, hi, T) == position
        assert decide(relation, lo, hi, margin, floor) == verdict, (lo, hi)


def test_the_table_is_whole():
    assert all(set(row) == set(Position) for row in TABLE.values())
    assert set(INTERVALS) == set(Position)


@pytest.mark.parametrize(
    ("relation", "lo", "hi", "floor", "verdict"),
    [
        ("smaller", 0.864, 0.974, 0.415, "inconclusive"),  # in the claimed direction, below the noise
        ("smaller", 1.375, 1.466, 0.103, "refuted"),
        ("smaller", 0.911, 1.263, 0.415, "inconclusive"),
        ("larger", 0.086, 0.372, 0.280, "refuted"),
        ("equal", 0.948, 1.015, 0.112, "supported"),
        ("not_larger", 0.024, 0.027, 0.103, "supported"),
    ],
)
def test_intervals_that_were_measured(relation, lo, hi, floor, verdict):
    assert decide(relation, lo, hi, 0.0, floor) == verdict


def test_without_any_tolerance_an_interval_beside_one_decides():
    for relation, verdict in (("larger", "supported"), ("smaller", "refuted"), ("equal", "refuted")):
        assert decide(relation, 1.001, 1.1, 0.0) == verdict
    assert decide("equal", 1.0, 1.0, 0.0) == "supported"
    assert decide("larger", 1.0, 1.0, 0.0) == "refuted", "exactly equal is not larger"
    assert decide("larger", 0.99, 1.01, 0.0) == "inconclusive"


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(0)
    lo = np.exp(rng.normal(0, 0.3, 2000))
    return list(zip(lo, lo * np.exp(abs(rng.normal(0, 0.2, 2000))), *rng.uniform(0, 0.5, (2, 2000)), strict=True))


def test_relations_mirror_each_other(draws):
    mirrored = {"larger": "smaller", "smaller": "larger", "equal": "equal"}
    mirrored |= {"not_larger": "not_smaller", "not_smaller": "not_larger"}
    for (lo, hi, margin, floor), (relation, mirror) in itertools.product(draws, mirrored.items()):
        assert decide(relation, lo, hi, margin, floor) == decide(mirror, 1 / hi, 1 / lo, margin, floor)


def test_opposites_are_never_both_supported_or_both_refuted_below_the_noise(draws):
    for lo, hi, _, floor in draws:
        assert {decide(name, lo, hi, 0.0, floor) for name in ("larger", "not_larger")} not in (
            {"supported"},
            {"refuted"},
        )
        assert {decide(name, lo, hi, 0.0, floor) for name in ("larger", "smaller")} not in ({"supported"}, {"refuted"})


def test_noise_never_decides_about_a_difference(draws):
    """With a floor, a verdict on `larger` needs the whole interval beyond it, and a larger floor decides no more."""
    for lo, hi, one, other in draws:
        verdict = decide("larger", lo, hi, 0.0, one)
        assert (verdict != "inconclusive") == (lo > 1 + one or hi < 1 / (1 + one))
        wider = decide("larger", lo, hi, 0.0, max(one, other))
        assert wider in (verdict, "inconclusive")
