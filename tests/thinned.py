"""Families of like cases, of which a spread sample runs by default and the rest with `-m slow`."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def thinned(cases: Iterable[Any], keep: int, slow: Sequence[pytest.MarkDecorator] = (pytest.mark.slow,)) -> list[Any]:
    """`cases` as parameters of `pytest.mark.parametrize`: `keep` of them, evenly spread, without the mark slow.

    A tuple is a set of parameters, as in parametrize. The first and the last case are kept.
    """
    every = list(cases)
    kept = {round(number * (len(every) - 1) / max(keep - 1, 1)) for number in range(keep)}
    return [case if at in kept else _marked(case, slow) for at, case in enumerate(every)]


def _marked(case: Any, slow: Sequence[pytest.MarkDecorator]) -> Any:
    if hasattr(case, "values") and hasattr(case, "marks"):  # what pytest.param makes
        return pytest.param(*case.values, marks=[*case.marks, *slow], id=case.id)
    return pytest.param(*case, marks=slow) if isinstance(case, tuple) else pytest.param(case, marks=slow)
