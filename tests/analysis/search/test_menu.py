"""The menu of a scan: bytes, errors beyond rounding, and what no scan can offer."""

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.search.menu import AS_STORED, menu_of
from precision_lab.errors import InputError
from tests.analysis.search.menus import random_menu

GROUPS = pd.DataFrame(
    {
        "group": ["a", "b", "b"],
        "site": ["a", "b.0", "b.1"],
        "num_weights": [64, 32, 32],
        "stored_bits": [1024, 512, 512],
    }
)


def rows(**errors):
    """Two steps of each pair `group_candidate`, with these velocity errors."""
    found = []
    for pair, values in errors.items():
        group, candidate = pair.split("_", 1)
        for step, error in enumerate(values):
            found.append(
                {
                    "group": group,
                    "component": "transformer",
                    "block": 0 if group == "a" else pd.NA,
                    "operation": f"op.{group}",
                    "candidate": candidate,
                    "prompt_id": 0,
                    "seed": 0,
                    "step": step,
                    "velocity_error": error,
                    "bytes_saved": 90 if candidate == "four" else 60,
                    "seconds_saved": np.nan,
                }
            )
    return pd.DataFrame(found).astype({"block": "Int64"})


NOISE = pd.DataFrame({"operation": [], "prompt_id": [], "seed": [], "step": [], "velocity_error": []})


def test_an_option_has_the_mean_square_of_its_errors_and_the_bytes_that_are_left():
    menu = menu_of(rows(a_four=(3e-3, 1e-3), b_eight=(1e-4, 0.0)), NOISE, GROUPS, weights=128, fixed=7)
    assert [place.name for place in menu.places] == ["a", "b"]
    assert menu.options[0][0] == (AS_STORED, 128, 0.0, 0.0)
    assert menu.options[0][1][:2] == ("four", 38)
    assert menu.options[0][1].error == pytest.approx(5e-6)
    assert menu.nbytes((1, 0)) == 7 + 38 + 128
    assert menu.error((1, 1)) == pytest.approx(5e-6 + 0.5e-8)
    assert menu.places[0].block == 0
    assert menu.places[1].block is None


def test_what_equivalent_rewrites_of_the_operation_show_is_no_error_of_a_candidate():
    noise = pd.DataFrame(
        {
            "operation": ["op.a", "op.a", "op.b"] * 2,
            "prompt_id": 0,
            "seed": 0,
            "step": [0, 0, 0, 1, 1, 1],
            "velocity_error": [1e-3, 3e-3, 1e-9, 1e-3, 3e-3, 1e-9],
        }
    )
    menu = menu_of(rows(a_four=(3e-3, 3e-3), a_eight=(2e-3, 2e-3), b_four=(1e-3, 1e-3)), noise, GROUPS, 128, 0)
    assert menu.options[0][1].error == pytest.approx(4e-6)
    assert menu.options[0][2].error == 0
    assert menu.options[1][1].error == pytest.approx(1e-6)


def test_a_candidate_that_is_not_finite_anywhere_is_no_option():
    menu = menu_of(rows(a_four=(1e-3, np.nan), a_eight=(1e-3, 1e-3)), NOISE, GROUPS, 128, 0)
    assert menu.candidates == (AS_STORED, "eight")
    with pytest.raises(InputError, match="nothing to choose"):
        menu_of(rows(a_four=(1e-3, np.nan)), NOISE, GROUPS, 128, 0)


def test_operations_of_several_components_are_told_apart():
    frame = rows(a_four=(1e-3, 1e-3), b_four=(1e-3, 1e-3)).assign(operation="mlp.0")
    frame.loc[frame["group"] == "b", "component"] = "text_encoder"
    operations = [place.operation for place in menu_of(frame, NOISE, GROUPS, 128, 0).places]
    assert operations == ["transformer:mlp.0", "text_encoder:mlp.0"]


@pytest.mark.parametrize("seed", range(5))
def test_a_frontier_holds_exactly_the_options_that_no_other_dominates(seed):
    menu = random_menu(seed, most=4)
    for options, frontier in zip(menu.options, menu.frontiers, strict=True):
        for at, option in enumerate(options):
            dominated = any(
                (other.nbytes, other.error) != (option.nbytes, option.error)
                and other.nbytes <= option.nbytes
                and other.error <= option.error
                for other in options
            )
            assert (at in frontier) != dominated


def test_a_candidate_everywhere_leaves_groups_that_it_does_not_fit():
    menu = menu_of(rows(a_four=(1e-3, 1e-3), b_eight=(1e-3, 1e-3)), NOISE, GROUPS, 128, 0)
    assert menu.assigned(menu.uniform("four")) == {"four": ["a"]}
    assert menu.assigned(menu.stored) == {}
    with pytest.raises(InputError, match="Did you mean eight"):
        menu.uniform("eigth")
