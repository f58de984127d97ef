"""Rankings of groups: planted differences are found, and what cannot be told apart is called a tie."""

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.sensitivity import chosen, ranking, units_of
from tests.spread import thinned

STEPS = (0, 3, 5)


def table(errors, candidate="affine4", floor=1e-6, prompts=1):
    """errors: by group, one for each step, or rows of them for each prompt; infinite means not finite."""
    rows = []
    for group, given in errors.items():
        values = np.broadcast_to(np.asarray(given, float), (prompts, len(STEPS)))
        for prompt in range(prompts):
            for step, value in zip(STEPS, values[prompt], strict=True):
                lost = int(not np.isfinite(value))
                rows.append(
                    {
                        "group": group,
                        "component": "net",
                        "block": 0,
                        "operation": group,
                        "stream": "-",
                        "candidate": candidate,
                        "prompt_id": prompt,
                        "seed": 0,
                        "step": step,
                        "local_error": 0.1,
                        "velocity_error": np.nan if lost else value,
                        "num_nonfinite": 7 * lost,
                        "free_drift": np.nan,
                        "bytes_saved": 1024,
                        "seconds_saved": np.nan,
                        "noise_floor": floor,
                    }
                )
    return pd.DataFrame(rows)


def ranks(errors, **about):
    found = ranking(table(errors, **about), "affine4")
    return dict(zip(found["group"], found["rank"], strict=True))


def test_a_constant_ratio_is_a_difference():
    errors = {"low": [1e-3, 2e-3, 5e-4], "high": [1.1e-3, 2.2e-3, 5.5e-4]}
    assert ranks(errors) == {"high": 1, "low": 2}


def test_ratios_that_change_their_sign_are_a_tie():
    found = ranking(table({"a": [1e-3, 2e-3, 5e-4], "b": [1.2e-3, 1.6e-3, 6e-4]}), "affine4")
    assert list(found["rank"]) == [1, 1]
    assert list(found["tied"]) == [1, 1]


def test_below_the_noise_floor_all_tie_whatever_their_ratio():
    errors = {"a": [9e-7] * 3, "b": [1e-9] * 3, "exact": [0, 0, 0], "real": [1e-5] * 3}
    assert ranks(errors) == {"real": 1, "a": 2, "b": 2, "exact": 2}
    assert ranks(errors, floor=1e-12) == {"real": 1, "a": 2, "b": 3, "exact": 4}


def test_groups_that_change_nothing_tie_whatever_their_own_floors():
    own = table({"a": [1e-3] * 3, "exact": [0, 0, 0], "other": [0, 0, 0]})
    own.loc[own["group"] == "other", "noise_floor"] = 0
    assert list(ranking(own, "affine4")["rank"]) == [1, 2, 2]


def test_a_difference_within_the_floor_is_a_tie():
    errors = {"a": [1e-3] * 3, "b": [1.001e-3] * 3}
    assert ranks(errors, floor=2e-6) == {"a": 1, "b": 1}
    assert ranks(errors, floor=1e-7) == {"b": 1, "a": 2}


def test_what_is_not_finite_comes_first_and_ties_with_its_like():
    errors = {"finite": [1.0, 2.0, 3.0], "lost": [1e-3, np.inf, 1e-3], "all": [np.inf] * 3}
    found = ranking(table(errors), "affine4")
    assert dict(zip(found["group"], found["rank"], strict=True)) == {"lost": 1, "all": 1, "finite": 3}
    assert dict(zip(found["group"], found["num_nonfinite"], strict=True)) == {"lost": 7, "all": 21, "finite": 0}


def test_an_exact_group_has_an_error_of_zero():
    found = ranking(table({"a": [1e-3] * 3, "exact": [0, 0, 0]}), "affine4").set_index("group")
    assert found.loc["exact", "velocity_error"] == 0
    assert found.loc["a", "velocity_error"] == pytest.approx(1e-3)


@pytest.mark.parametrize(("prompts", "units"), [(1, "steps"), (2, "steps"), (3, "prompts"), (5, "prompts")])
def test_the_pairs_of_the_interval(prompts, units):
    assert units_of(table({"a": [1e-3] * 3}, prompts=prompts)) == units


def test_few_pairs_leave_only_the_noise():
    short = table({"a": [1e-3, 2e-3, 3e-3], "b": [1.1e-3, 1.9e-3, 3e-3]})
    short = short[short["step"] == 0]
    assert units_of(short) == "none"
    assert list(ranking(short, "affine4")["rank"]) == [1, 2]


@pytest.mark.parametrize("seed", thinned(range(30), keep=10))
def test_planted_groups_come_first_and_the_untouched_tie(seed):
    """Untouched groups differ by chance alone, from step to step; the planted ones are four times as sensitive."""
    rng = np.random.default_rng(seed)
    level = np.array([3e-3, 1e-3, 2e-3])
    errors = {f"g{i}": level * np.exp(0.3 * rng.standard_normal(3)) for i in range(40)}
    planted = {f"g{i}" for i in rng.choice(40, rng.integers(1, 6), replace=False)}
    errors |= {name: 8 * errors[name] for name in planted}
    found = ranking(table(errors), "affine4")
    assert set(found["group"][: len(planted)]) == planted
    untouched = found[~found["group"].isin(planted)]
    assert (untouched["tied"] > 0).mean() > 0.8


def test_the_pairs_to_be_confirmed_are_the_ends_of_each_ranking():
    both = pd.concat(
        [
            table({f"g{i}": [10.0**-i] * 3 for i in range(1, 6)}),
            table({f"g{i}": [10.0**i * 1e-9] * 3 for i in range(1, 6)}, "fp8", floor=1e-12),
        ]
    )
    assert chosen(both, 1) == [("g1", "affine4"), ("g5", "affine4"), ("g5", "fp8"), ("g1", "fp8")]
    assert len(chosen(both, 3)) == 10  # each group once
    assert chosen(both, 0) == []
