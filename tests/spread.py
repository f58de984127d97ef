"""Families of alike and expensive cases, of which a default run tests a part that is spread over them."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def thinned(cases: Iterable[Any], keep: int | Collection[Any]) -> list[Any]:
    """Parameters for pytest, of which a default run tests `keep`; the others are marked slow.

    keep: the cases themselves, or their number, evenly spread with both ends.
    """
    every = list(cases)
    if isinstance(keep, int):
        kept = {round(number * (len(every) - 1) / max(keep - 1, 1)) for number in range(keep)}
    else:
        assert all(case in every for case in keep)
        kept = {at for at, case in enumerate(every) if case in keep}
    return [case if at in kept else slow(case) for at, case in enumerate(every)]


def slow(case: Any) -> Any:
    """The parameters of one case, marked slow. A tuple is several parameters, as in pytest."""
    if hasattr(case, "values") and hasattr(case, "marks"):  # what pytest.param makes
        return pytest.param(*case.values, marks=[*case.marks, pytest.mark.slow], id=case.id)
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
