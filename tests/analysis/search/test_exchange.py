"""Local exchange: it finds what additive predictions miss, and keeps nothing that the noise explains."""

import math

import pytest

from precision_lab.analysis.search.clusters import label, levels, of_ranges
from precision_lab.analysis.search.exchange import BATCH, Exchange, mean_ratio
from precision_lab.analysis.search.greedy import greedy
from precision_lab.analysis.search.knapsack import least_error
from precision_lab.analysis.search.menu import Place
from tests.analysis.search.menus import KINDS, equal_menu, reinforcing, searched


def middle(menu):
    """The size with every group between the two candidates."""
    return (menu.nbytes(menu.uniform("four")) + menu.nbytes(menu.uniform("eight"))) // 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [4, 12])
def test_errors_that_reinforce_each_other_are_found_where_greedy_and_the_knapsack_are_blind(kind, blocks):
    """By itself every group of the fragile operation is a little less sensitive than others. Together they are not."""
    menu = equal_menu(blocks, tempting=kind)
    limit, drift = middle(menu), reinforcing(menu, kind)
    start = least_error(menu, limit).choice
    exchange = Exchange(menu, start, limit, 48, noise=0.02)
    searched(exchange, drift)
    best = drift(exchange.best)
    assert best < 0.8 * drift(start)
    assert best < 0.8 * drift(greedy(menu, limit))
    fragile = [o for p, o in zip(menu.places, menu.of(exchange.best), strict=True) if p.operation == kind]
    assert sum(option.candidate == "four" for option in fragile) <= 1  # one by itself is as harmless as predicted
    assert exchange.drifts == pytest.approx([best, 1.3 * best])


def test_no_choice_exceeds_the_size_and_none_is_tried_twice():
    menu = equal_menu(6)
    limit = middle(menu)
    asked = searched(Exchange(menu, least_error(menu, limit).choice, limit, 60, 0.01), reinforcing(menu, "mlp.2"))
    assert len(asked) == len(set(asked)) <= 60
    assert all(menu.nbytes(choice) <= limit for choice in asked)


def test_the_number_of_evaluations_is_kept():
    menu = equal_menu(16)
    for evaluations in (1, 2, 7, 30):
        exchange = Exchange(menu, least_error(menu, middle(menu)).choice, middle(menu), evaluations, 0.01)
        assert len(searched(exchange, reinforcing(menu, "to_k"))) == evaluations


def test_a_change_within_the_noise_is_not_kept():
    menu = equal_menu()
    start = least_error(menu, middle(menu)).choice
    exchange = Exchange(menu, start, middle(menu), 40, noise=0.05)
    drifts = iter(range(1000))
    searched(exchange, lambda choice: 1 - 0.04 * (next(drifts) % 3) / 2)
    assert exchange.best == start
    assert exchange.accepted == []


def test_a_swap_that_harms_one_case_is_not_kept():
    menu = equal_menu()
    start = least_error(menu, middle(menu)).choice
    exchange = Exchange(menu, start, middle(menu), 20, noise=0.0)
    while choices := exchange.ask():
        exchange.tell([[1.0, 1.0] if choice == start else [0.1, 1.01] for choice in choices])
    assert exchange.best == start


def test_a_gain_of_less_than_a_hundredth_is_not_kept():
    menu = equal_menu()
    start = least_error(menu, middle(menu)).choice
    for gain, is_kept in ((0.005, False), (0.02, True)):
        exchange = Exchange(menu, start, middle(menu), 8, noise=0.0)
        searched(exchange, lambda choice, gain=gain: 1.0 if choice == start else 1.0 - gain)
        assert (exchange.best != start) == is_kept


def test_a_choice_that_is_not_finite_is_never_kept():
    menu = equal_menu()
    start = least_error(menu, middle(menu)).choice
    exchange = Exchange(menu, start, middle(menu), 40, noise=0.0)
    searched(exchange, lambda choice: 1.0 if choice == start else math.nan)
    assert exchange.best == start


def test_the_same_measurements_give_the_same_search():
    menu = equal_menu(8)
    runs = [Exchange(menu, least_error(menu, middle(menu)).choice, middle(menu), 40, 0.01) for _ in range(2)]
    first, second = (searched(run, reinforcing(menu, "to_q")) for run in runs)
    assert first == second
    assert runs[0].accepted == runs[1].accepted


def test_at_most_a_batch_is_asked_for_at_once():
    menu = equal_menu(8)
    exchange = Exchange(menu, least_error(menu, middle(menu)).choice, middle(menu), 30, 0.01)
    while choices := exchange.ask():
        assert len(choices) <= BATCH
        exchange.tell([[1.0]] * len(choices))


def test_clusters_partition_the_groups_from_operations_to_single_groups():
    menu = equal_menu(5)
    found = levels(menu)
    assert [len(level) for level in found] == [4, 8, 16, 20]
    for level in found:
        assert sorted(at for cluster in level for at in cluster) == list(range(20))
    named = [label([menu.places[at] for at in cluster]) for cluster in of_ranges(menu, 2)]
    assert named[:2] == ["to_q of blocks 0 to 1", "to_q of blocks 2 to 4"]
    assert label([Place("proj_out", "proj_out")]) == "proj_out"


def test_the_ratio_of_drifts_is_a_geometric_mean():
    assert mean_ratio([2.0, 0.5], [1.0, 1.0]) == pytest.approx(1.0)
    assert math.isnan(mean_ratio([1.0, math.nan], [1.0, 1.0]))
    assert math.isnan(mean_ratio([1.0, 0.0], [1.0, 1.0]))
