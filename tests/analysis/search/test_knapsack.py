"""The knapsack against an enumeration of all choices, and its proven bound."""

import math
import time

import pytest

from precision_lab.analysis.search.greedy import greedy
from precision_lab.analysis.search.knapsack import least_bytes, least_error
from precision_lab.analysis.search.menu import AS_STORED, Menu, Option, Place
from tests.analysis.search.menus import every_choice, random_menu

SEEDS = range(12)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_choice_within_a_size_is_the_best_of_all_choices(seed):
    menu = random_menu(seed)
    choices = every_choice(menu)
    sizes = sorted(map(menu.nbytes, choices))
    for limit in (sizes[0], sizes[len(sizes) // 3], sizes[len(sizes) // 2], sizes[-1]):
        best = min(menu.error(choice) for choice in choices if menu.nbytes(choice) <= limit)
        found = least_error(menu, limit)
        assert menu.nbytes(found.choice) <= limit
        assert found.value == pytest.approx(best, rel=2e-4, abs=1e-12)
        assert found.bound <= best * (1 + 1e-9) + 1e-12
        assert found.gap <= 2e-4 or best < 1e-9


@pytest.mark.parametrize("seed", SEEDS)
def test_the_choice_below_an_error_is_the_smallest_of_all_choices(seed):
    menu = random_menu(seed)
    choices = every_choice(menu)
    errors = sorted(map(menu.error, choices))
    for limit in (0.0, errors[len(errors) // 2] * 1.0001, errors[-1] * 1.0001):
        best = min(menu.nbytes(choice) for choice in choices if menu.error(choice) <= limit)
        found = least_bytes(menu, limit)
        assert menu.error(found.choice) <= limit
        assert menu.nbytes(found.choice) == pytest.approx(best, rel=2e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_size_and_time_limit_together(seed):
    menu = random_menu(seed, timed=True)
    choices = every_choice(menu)
    within = [(menu.nbytes(c), menu.seconds(c)) for c in choices]
    limit, seconds = sorted(within)[len(within) // 2][0], sorted(time for _, time in within)[len(within) // 3]
    both = [c for c in choices if menu.nbytes(c) <= limit and menu.seconds(c) <= seconds]
    found = least_error(menu, limit, seconds)
    assert (found is None) == (not both)
    if both:
        assert menu.nbytes(found.choice) <= limit
        assert menu.seconds(found.choice) <= seconds
        assert found.value == pytest.approx(min(map(menu.error, both)), rel=2e-4, abs=1e-12)


def test_no_choice_within_the_limits_is_none():
    menu = random_menu(0)
    least = menu.nbytes(menu.smallest)
    assert least_error(menu, least) is not None
    assert least_error(menu, least - 1) is None
    assert least_bytes(menu, -1.0) is None
    assert greedy(menu, least - 1) is None


def test_an_option_whose_time_was_not_measured_is_left_out_under_a_limit_of_time():
    menu = random_menu(3)
    found = least_error(menu, None, 0.0)
    assert found.choice == menu.stored


@pytest.mark.parametrize("seed", SEEDS)
def test_greedy_is_within_its_size_and_never_better(seed):
    menu = random_menu(seed)
    limit = (menu.nbytes(menu.smallest) + menu.nbytes(menu.stored)) // 2
    choice = greedy(menu, limit)
    assert menu.nbytes(choice) <= limit
    assert menu.error(choice) >= least_error(menu, limit).value * (1 - 1e-3) - 1e-12


def test_greedy_takes_a_cheap_step_that_is_of_no_use():
    """The small group costs less a byte, but the large one has to be narrowed anyway."""
    stored = Option(AS_STORED, 100, 0.0)
    places = (Place("small", "a", 0), Place("large", "b", 0))
    menu = Menu(places, ((stored, Option("c", 90, 0.1)), (stored, Option("c", 50, 1.0))), 200)
    assert greedy(menu, 150) == (1, 1)
    assert least_error(menu, 150).choice == (0, 1)


def test_hundreds_of_groups_take_seconds_and_are_solved_within_the_gap():
    menu = random_menu(1, groups=840)
    limit = (menu.nbytes(menu.smallest) + menu.nbytes(menu.stored)) // 2
    started = time.perf_counter()
    found = least_error(menu, limit)
    assert time.perf_counter() - started < 20
    assert found.gap <= 1e-3
    assert math.isfinite(found.bound)
    assert found == least_error(menu, limit)
