"""Minimal sets of synthetic criteria: exact, within the bound, and honest where the criterion is not monotone."""

import itertools
import random

import pytest

from precision_lab.analysis.minimal import Minimal, MinimalSet, most_runs


def solved(search, criterion):
    asked = 0
    while wanted := search.ask():
        assert len(set(wanted)) == len(wanted)
        asked += len(wanted)
        search.tell({names: criterion(names) for names in wanted})
    assert asked == len(search.holds)
    return search.result


def named(n):
    return [f"s{i}" for i in range(n)]


def drawn(rng, most):
    n = rng.choice([1, 2, 3, 5, 8, 13, 64, 100, 257, most])
    return named(n), rng.randint(1, min(n, rng.choice([1, 2, 3, 5, 12])))


def test_planted_names_are_found_exactly_within_the_bound():
    rng = random.Random(0)
    for draw in range(3000):
        names, k = drawn(rng, 1000 if draw % 10 == 0 else 200)
        planted = frozenset(rng.sample(names, k))
        found = solved(MinimalSet(names, seed=draw), planted.issubset)
        assert found.status == "found"
        assert frozenset(found.names) == frozenset(found.discovered) == planted
        assert list(found.names) == [name for name in names if name in planted]
        assert found.runs <= most_runs(len(names), k)
        assert found.is_minimal
        assert found.is_only
        assert found.checks <= 8 + k


@pytest.mark.parametrize("n", range(1, 9))
def test_the_bound_holds_for_every_set_of_a_few_names(n):
    names = named(n)
    for k in range(1, n + 1):
        for planted in itertools.combinations(names, k):
            found = solved(MinimalSet(names, checks=0), frozenset(planted).issubset)
            assert found.names == planted
            assert found.runs <= most_runs(n, k)
            assert found.is_only is None


def test_of_several_minimal_sets_one_is_found_and_is_not_called_the_only_one():
    rng = random.Random(1)
    several = 0
    for draw in range(500):
        names = named(rng.randint(4, 60))
        ways = [frozenset(rng.sample(names, rng.randint(1, 4))) for _ in range(rng.randint(2, 4))]
        minimal = {way for way in ways if not any(other < way for other in ways)}
        found = solved(MinimalSet(names, seed=draw), lambda chosen, ways=ways: any(way <= chosen for way in ways))
        assert frozenset(found.names) in minimal
        assert found.is_minimal
        assert found.is_only == (len(minimal) == 1)
        several += len(minimal) > 1
    assert several > 300


def test_without_a_monotone_criterion_no_single_name_can_be_left_out():
    rng, fallbacks, violated = random.Random(2), 0, 0
    for draw in range(400):
        names = named(rng.randint(2, 24))
        table = {}

        def criterion(chosen, table=table, rng=rng, names=names):
            if len(chosen) in (0, len(names)):
                return bool(chosen)
            return table.setdefault(chosen, rng.random() < 0.4)

        found = solved(MinimalSet(names, seed=draw), criterion)
        assert found.status == "found"
        assert criterion(frozenset(found.names))
        assert not any(criterion(frozenset(found.names) - {name}) for name in found.names)
        assert found.is_minimal == (not found.violations and not found.fallback)
        for small, large in found.violations:
            assert small < large
            assert criterion(small)
            assert not criterion(large)
        fallbacks += found.fallback
        violated += bool(found.violations)
    assert fallbacks > 20
    assert violated > 200


def test_checks_find_a_violation_that_the_search_did_not_meet():
    names = named(12)
    planted = frozenset({"s3"})

    def criterion(chosen):  # spoilt by any four names too many, unless all are there
        return planted <= chosen and (len(chosen) == 12 or len(chosen - planted) not in (4, 5))

    assert any(solved(MinimalSet(names, checks=8, seed=seed), criterion).violations for seed in range(10))


@pytest.mark.parametrize(("holds", "status"), [(True, "nothing"), (False, "impossible")])
def test_a_criterion_that_never_changes_takes_two_runs(holds, status):
    assert solved(MinimalSet(named(50)), lambda chosen: holds) == Minimal(status, runs=2)


def test_a_search_continues_from_known_results():
    planted, names = frozenset({"s7", "s41"}), named(64)
    whole = MinimalSet(names)
    expected = solved(whole, planted.issubset)
    resumed = MinimalSet(names)
    asked = []
    while wanted := resumed.ask():
        asked += wanted
        resumed.tell({each: whole.holds[each] for each in wanted})
    assert resumed.result == expected
    assert asked == list(whole.holds)


def test_names_must_be_distinct_and_known():
    for names in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="distinct"):
            MinimalSet(names)
    with pytest.raises(ValueError, match="none of the names"):
        MinimalSet(["a"]).tell({frozenset({"b"}): True})
