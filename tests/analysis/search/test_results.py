"""Recipes from the table of a search: intervals, the front, and ties that are called ties."""

import math

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.search.results import compared, comparisons, results


def table(**recipes):
    """Rows of recipes `name=(strategy, budget, bytes, drifts)`: the first drift of the search, the others held out."""
    rows = []
    for name, (strategy, budget, nbytes, drifts) in recipes.items():
        for at, drift in enumerate(drifts):
            rows.append(
                {
                    "recipe": name,
                    "strategy": strategy,
                    "budget": budget,
                    "held_out": at > 0,
                    "prompt_id": at,
                    "seed": 0,
                    "rel_l2": drift,
                    "psnr_db": 30.0,
                    "num_nonfinite": 0,
                    "bytes": nbytes,
                    "bits_per_weight": nbytes / 100,
                    "predicted": 0.1,
                    "error": None,
                }
            )
    return pd.DataFrame(rows)


def test_the_interval_is_over_prompts_and_holds_the_geometric_mean():
    [one] = results(table(a=("exchange", "5bits", 500, (0.2, 0.1, 0.2, 0.4))))
    assert one.drift == pytest.approx(0.2)
    assert one.held_out == pytest.approx(0.2)
    # Student's t of two degrees of freedom, of the logarithms
    half = 4.302652729911275 * np.std(np.log([0.1, 0.2, 0.4]), ddof=1) / math.sqrt(3)
    assert (one.lo, one.hi) == (pytest.approx(0.2 * math.exp(-half)), pytest.approx(0.2 * math.exp(half)))


def test_two_prompts_have_no_interval():
    [one] = results(table(a=("exchange", "5bits", 500, (0.2, 0.1, 0.2))))
    assert math.isnan(one.lo)
    assert math.isnan(one.hi)


def test_the_front_holds_what_nothing_dominates():
    found = results(
        table(
            small=("uniform", "-", 400, (0.5, 0.5)),
            good=("exchange", "5bits", 500, (0.2, 0.2)),
            worse=("greedy", "5bits", 500, (0.3, 0.3)),
            broken=("included", "-", 300, (math.nan, math.nan)),
            plain=("plain", "-", 1600, (0.0, 0.0)),
        )
    )
    assert {each.name: each.on_front for each in found} == {
        "small": True,
        "good": True,
        "worse": False,
        "broken": False,
        "plain": True,
    }


NOISY = (1.0, 1.4, 0.7, 1.1)


@pytest.mark.parametrize(
    ("factors", "noise", "order"),
    [
        ((0.5, 0.5, 0.52, 0.49), 0.0, "less"),
        ((2.0, 2.1, 2.0, 1.9), 0.0, "more"),
        ((0.5, 2.0, 0.9, 1.2), 0.0, "tie"),
        ((0.99, 0.991, 0.99, 0.99), 0.05, "tie"),
        ((1.0, 1.0, 1.0, 1.0), 0.0, "tie"),
    ],
)
def test_an_order_is_stated_only_beyond_the_interval_and_the_noise(factors, noise, order):
    mine = tuple(drift * factor for drift, factor in zip(NOISY, factors, strict=True))
    frame = table(mine=("exchange", "5bits", 500, (0.1, *mine)), other=("greedy", "5bits", 500, (0.1, *NOISY)))
    found = compared(frame, "mine", "other", noise)
    assert found.order == order
    assert ("tie" in found.words) == (order == "tie")
    assert found.ratio == pytest.approx(np.exp(np.mean(np.log(factors))))


def test_recipes_that_are_not_finite_together_tie():
    frame = table(a=("exchange", "5bits", 500, (1.0, math.nan)), b=("greedy", "5bits", 500, (1.0, 1.0)))
    assert compared(frame, "a", "b", 0.0).order == "tie"


def test_a_recipe_is_compared_with_its_budget_and_with_all_of_its_size():
    frame = table(
        mine=("exchange", "5bits", 1000, (1.0, 1.0)),
        greedy=("greedy", "5bits", 950, (1.0, 1.0)),
        published=("included", "-", 1004, (1.0, 1.0)),
        larger=("included", "-", 1010, (1.0, 1.0)),
        plain=("plain", "-", 1600, (0.0, 0.0)),
    )
    assert [each.other for each in comparisons(frame, "mine", 0.0)] == ["greedy", "published"]
