"""Families of alike and expensive cases, of which a default run tests a part that is spread over them."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def spread(cases: Iterable[Any], every: int, first: int = 0) -> list[Any]:
    """Parameters for pytest: every so many of `cases`, beginning with number `first`; the others are marked slow."""
    return [case if at % every == first else slow(case) for at, case in enumerate(cases)]


def some(cases: Iterable[Any], chosen: Collection[Any]) -> list[Any]:
    """Parameters for pytest: the `chosen` of `cases`; the others are marked slow."""
    listed = list(cases)
    assert all(case in listed for case in chosen)
    return [case if case in chosen else slow(case) for case in listed]


def thinned(cases: Iterable[Any], keep: int) -> list[Any]:
    """Parameters for pytest: `keep` of `cases`, evenly spread with both ends; the others are marked slow."""
    every = list(cases)
    kept = {round(number * (len(every) - 1) / max(keep - 1, 1)) for number in range(keep)}
    return [case if at in kept else slow(case) for at, case in enumerate(every)]


def slow(case: Any) -> Any:
    """The parameters of one case, marked slow. A tuple is several parameters, as in pytest."""
    if hasattr(case, "values") and hasattr(case, "marks"):  # what pytest.param makes
        return pytest.param(*case.values, marks=[*case.marks, pytest.mark.slow], id=case.id)
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
