"""Budgets: what is refused, with the nearest that can be met."""

import math

import pytest

from precision_lab.analysis.search.additivity import additivity
from precision_lab.analysis.search.budgets import Budget, smallest_drift
from precision_lab.errors import InputError
from tests.analysis.search.menus import equal_menu, random_menu


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "The budget is empty"),
        ({"gb": [1.0], "bits": [4.0]}, "both limit the size"),
        ({"gb": [-1.0]}, "expected a number above 0"),
        ({"bits": [0.0]}, "expected a number above 0"),
        ({"drift": math.inf}, "expected a number above 0"),
        ({"latency": math.nan}, "expected a number above 0"),
        ({"bits": [4.0, 4.0]}, "each size once"),
    ],
)
def test_a_budget_that_says_nothing_or_two_things_is_refused_in_one_line(given, said):
    with pytest.raises(InputError, match=said) as error:
        Budget(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["gb", "bits"])
def test_a_size_that_nothing_meets_names_the_smallest_which_can_be_given(kind):
    menu = equal_menu()
    least = menu.nbytes(menu.smallest)
    below = {"gb": least / 2 / 1e9, "bits": menu.bits(least) / 2}[kind]
    with pytest.raises(InputError, match=rf"cannot be met: .* the smallest is {kind}=\S+") as error:
        Budget(**{kind: [below]}).sizes(menu)
    nearest = float(str(error.value).partition(f"smallest is {kind}=")[2].split(". ")[0])
    [limit] = Budget(**{kind: [nearest]}).sizes(menu).values()
    assert least <= limit <= least * 1.002


@pytest.mark.parametrize(("given", "said"), [({"bits": [16.0]}, "have 16 as"), ({"gb": [1.0]}, "have 2.56e-06 as")])
def test_a_size_that_the_stored_weights_have_leaves_nothing_to_search(given, said):
    with pytest.raises(InputError, match=f"leaves nothing to search: the weights {said} stored"):
        Budget(**given).sizes(equal_menu())


def test_sizes_are_bytes_by_name():
    menu = equal_menu()
    assert Budget(bits=[8, 6.5]).sizes(menu) == {"8bits": menu.weights, "6.5bits": int(menu.weights * 6.5 / 8)}
    assert Budget(gb=[2e-6]).sizes(menu) == {"2e-06gb": 2000}
    assert list(Budget(gb=[2.06123457e-6, 2.06123458e-6]).sizes(menu)) == ["2.06123457e-06gb", "2.06123458e-06gb"]
    assert Budget(drift=0.1).sizes(menu) == {}


def test_a_latency_needs_measured_times():
    with pytest.raises(InputError, match=r"run the scan with scan\.rounds"):
        Budget(latency=0.9).seconds(random_menu(0), 1.0)
    menu = random_menu(0, timed=True)
    fastest = sum(min(option.seconds for option in own) for own in menu.options)
    step = -2 * fastest
    assert Budget(latency=0.75).seconds(menu, step) == pytest.approx(-step / 4)
    with pytest.raises(InputError, match=r"fastest choice is predicted to take 0\.500"):
        Budget(latency=0.4).seconds(menu, step)


def test_a_size_and_a_time_that_exclude_each_other():
    menu = random_menu(0, timed=True)
    fastest = sum(min(option.seconds for option in own) for own in menu.options)
    assert smallest_drift(menu, menu.nbytes(menu.stored), fastest + 1e-9)
    with pytest.raises(InputError, match="contradict each other"):
        smallest_drift(menu, menu.nbytes(menu.smallest), fastest + 1e-9)


def test_predictions_that_are_off_by_one_factor():
    found = additivity([1e-3, 2e-3, 4e-3], [2e-3, 4e-3, 8e-3])
    assert found.factor == pytest.approx(2)
    assert found.spread == pytest.approx(1)
    assert found.lo == pytest.approx(2)
    assert "reinforce" in found.words
    assert "rank recipes as the measurements do" in found.words


def test_predictions_that_are_off_by_different_factors():
    found = additivity([1.0, 1.0, 1.0, 0.0, 1.0], [0.5, 1.0, 2.0, 1.0, math.nan])
    assert found.number == 3
    assert found.factor == pytest.approx(1)
    assert found.spread == pytest.approx(2)
    assert found.lo < 1 < found.hi
    assert "No one factor" in found.words
    assert "not checked" in additivity([], []).words
