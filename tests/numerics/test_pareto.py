import numpy as np
import pytest

from precision_lab.numerics.pareto import nondominated


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 4), (2, 3), (3, 2), (4, 1)], [True] * 4),
        ([(1, 1), (1, 2), (2, 1), (2, 2)], [True, False, False, False]),
        ([(1, 1), (1, 1), (2, 0.5)], [True, True, True]),
        ([(1, 0), (2, 0), (0.5, 3)], [True, False, True]),
        ([(np.nan, 0), (1, np.nan), (1, 1)], [False, False, True]),
        ([(np.inf, 0), (1, 1)], [True, True]),
        ([(5, 5)], [True]),
    ],
    ids=["a trade-off", "one dominates", "equal points", "ties on an axis", "NaN", "infinity", "alone"],
)
def test_known_fronts(points, expected):
    assert nondominated(np.array(points, dtype=float)).tolist() == expected


def test_no_points():
    assert nondominated(np.empty((0, 2))).tolist() == []


def test_against_the_definition():
    points = np.random.default_rng(0).integers(0, 6, (60, 3)).astype(float)
    for point, kept in zip(points, nondominated(points), strict=True):
        dominated = any(all(other <= point) and any(other < point) for other in points)
        assert kept != dominated


def test_the_front_of_a_hyperbola_is_all_of_it_and_nothing_above():
    x = np.linspace(1, 4, 20)
    points = np.concatenate([np.column_stack([x, 1 / x]), np.column_stack([x, 1.01 / x + 0.3])])
    assert nondominated(points).tolist() == [True] * 20 + [False] * 20
