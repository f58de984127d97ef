"""Families of rules that Optuna samples."""

import sys

import pytest

from precision_lab.analysis.search.clusters import of_ranges
from precision_lab.analysis.search.exchange import BATCH
from precision_lab.analysis.search.families import Families
from precision_lab.analysis.search.menu import AS_STORED, Menu, Option, Place
from precision_lab.errors import InputError
from tests.analysis.search.menus import equal_menu, random_menu, reinforcing, searched


def limit_of(menu):
    return (menu.nbytes(menu.uniform("eight")) + menu.nbytes(menu.stored)) // 2


def test_without_optuna_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'precision-lab\[search\]'") as error:
        Families(equal_menu(), 10**6, 4)
    assert "\n" not in str(error.value)


def test_choices_are_within_the_size_and_the_best_is_kept():
    pytest.importorskip("optuna")
    menu = equal_menu(8)
    drift = reinforcing(menu, "to_q")
    families = Families(menu, limit_of(menu), 20)
    asked = searched(families, drift)
    assert len(asked) == 20
    assert all(menu.nbytes(choice) <= limit_of(menu) for choice in asked)
    assert drift(families.best) == min(map(drift, asked))


def test_a_range_of_an_operation_has_one_candidate():
    pytest.importorskip("optuna")
    menu = equal_menu(8)
    for choice in searched(Families(menu, 10**6, 8, ranges=2), lambda choice: 1.0):
        kinds = [(place.operation, place.block // 4, at) for place, at in zip(menu.places, choice, strict=True)]
        assert len(set(kinds)) == len({kind[:2] for kind in kinds})


def test_the_same_seed_gives_the_same_search_with_or_without_storage(tmp_path):
    pytest.importorskip("optuna")
    menu = equal_menu(6)
    runs = [Families(menu, limit_of(menu), 12, storage=storage) for storage in (None, tmp_path / "a" / "optuna.log")]
    first, second = (searched(run, reinforcing(menu, "to_k")) for run in runs)
    assert first == second
    again = searched(Families(menu, limit_of(menu), 12, storage=tmp_path / "a" / "optuna.log"), lambda choice: 1.0)
    assert again[:BATCH] == first[:BATCH]
    other = searched(Families(menu, limit_of(menu), 12, seed=1), reinforcing(menu, "to_k"))
    assert other != first


def test_every_choice_uses_the_size_that_is_allowed():
    """What is left is less than raising any family would take."""
    pytest.importorskip("optuna")
    menu = equal_menu(8)
    limit = limit_of(menu)
    for choice in searched(Families(menu, limit, 12), lambda choice: 1.0):
        left = limit - menu.nbytes(choice)
        raised = [
            sum(menu.options[at][0].nbytes - menu.options[at][choice[at]].nbytes for at in cluster)
            for cluster in of_ranges(menu, 4)
        ]
        assert all(more == 0 or more > left for more in raised)


def test_candidates_of_the_same_bytes_are_all_tried():
    pytest.importorskip("optuna")
    options = (Option(AS_STORED, 160, 0.0), Option("affine4", 45, 1e-4), Option("nvfp4", 45, 1e-4))
    menu = Menu(tuple(Place(f"{at}", "to_q", at) for at in range(8)), (options,) * 8, 640)
    asked = searched(Families(menu, 8 * 45, 12), lambda choice: 1.0)
    assert {option.candidate for choice in asked for option in menu.of(choice)} == {"affine4", "nvfp4"}


def test_a_size_that_no_family_is_within_ends_the_search():
    pytest.importorskip("optuna")
    menu = random_menu(2)
    families = Families(menu, menu.nbytes(menu.smallest) - 1, 1)
    assert searched(families, lambda choice: 1.0) == []
    assert families.best is None
