"""Minimal sets of synthetic criteria: exact, within the bound, and honest where the criterion is not monotone."""

import itertools
import math
import random

import pytest

from precision_lab.analysis.minimal import Minimal, MinimalSet, most_runs


def solved(search, criterion, known=0):
    asked = known
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
    several, single = 0, []
    for draw in range(500):
        names = named(rng.randint(4, 60))
        ways = [frozenset(rng.sample(names, rng.randint(1, 4))) for _ in range(rng.randint(2, 4))]
        minimal = {way for way in ways if not any(other < way for other in ways)}
        found = solved(MinimalSet(names, seed=draw), lambda chosen, ways=ways: any(way <= chosen for way in ways))
        assert frozenset(found.names) in minimal
        assert found.is_minimal
        assert found.is_only == (len(minimal) == 1)
        assert set(found.instead) == set(found.names) - frozenset.intersection(*minimal)
        for name, other in found.instead.items():
            will_do = {each for each in names if any(way <= set(found.names) - {name} | {each} for way in ways)} - {
                name
            }
            assert other in will_do or other is None  # halves can hide a single one behind several
            single += [(bool(will_do), bool(other))]
        most = 8 + len(found.names) + 2 * math.ceil(math.log2(len(names))) * len(found.instead)
        assert found.checks <= most
        several += len(minimal) > 1
    assert several > 300
    assert sum(found for exists, found in single if exists) > 0.9 * sum(exists for exists, _ in single) > 50


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
        for kept in range(max(len(found.names) - found.left_out, 0), len(found.names)):
            assert not any(criterion(frozenset(subset)) for subset in itertools.combinations(found.names, kept))
        assert found.is_minimal == (found.left_out >= len(found.names) or not (found.violations or found.fallback))
        for name, other in found.instead.items():
            assert other is None or criterion(frozenset(found.names) - {name} | {other})
        for small, large in found.violations:
            assert small < large
            assert criterion(small)
            assert not criterion(large)
        fallbacks += found.fallback
        violated += bool(found.violations)
    assert fallbacks > 20
    assert violated > 200


def test_where_two_names_harm_each_other_they_are_left_out_together():
    """Errors that cancel: either of two needless names alone spoils what both together, or neither, leave whole."""
    names, planted, pair = named(40), frozenset({"s3", "s17", "s30"}), frozenset({"s9", "s21"})
    other = frozenset({"s35", "s36"})

    def criterion(chosen):
        return planted <= chosen and len(pair & chosen) != 1 and len(other & chosen) != 1

    smallest = []
    for subsets in (0, 64):
        search = MinimalSet(names, subsets=subsets)
        known = [planted | pair, planted | pair | {"s35"}]  # a violation that the search happens to meet
        search.tell({each: criterion(each) for each in known})
        found = solved(search, criterion, len(known))
        smallest.append(set(found.names))
        assert not any(criterion(frozenset(found.names) - {name}) for name in found.names)
    assert smallest == [planted | pair, planted]
    assert found.left_out == 3
    assert found.is_minimal


@pytest.mark.parametrize("count", [6, 7, 20])
def test_subsets_take_no_more_runs_than_allowed(count):
    names = named(30)
    spoilt = frozenset(names[20:22])

    def criterion(chosen):  # a set of `count` is needed, and of two others both or none
        return frozenset(names[:count]) <= chosen and len(chosen & spoilt) != 1

    plain, thinned = (solved(MinimalSet(names, subsets=most), criterion) for most in (0, 64))
    assert thinned.violations
    assert thinned.runs == plain.runs
    assert thinned.checks - plain.checks <= 64
    assert set(thinned.names) == set(names[:count])
    assert thinned.left_out == {6: 6, 7: 3, 20: 1}[count]
    assert plain.left_out == 1


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
