"""From a mapping of settings to the dataclass that defines them, with the checks that are the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from precision_lab.errors import InputError, nearest

T = TypeVar("T")


def checked(kind: type[T], values: Mapping[Any, Any]) -> T:
    """An object of the dataclass `kind` from settings by the names of its fields.

    A field whose default is a number takes numbers; one whose default is an integer takes 20.0 too, as 20. Raises
    InputError for an unknown name, with the nearest ones, for a missing name, for a value that is not a number (or is
    NaN) where a number is expected, and for a fraction where an integer is expected.
    """
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    settings = {}
    for key, value in values.items():
        if key not in known:
            raise InputError(f"Unknown setting {key!r}. {nearest(str(key), known)}")
        default = known[key].default
        is_number = isinstance(default, int | float) and not isinstance(default, bool)
        if is_number and not _fits(value, isinstance(default, int)):
            raise InputError(f"{key} is {value!r}, expected a number like {default}")
        settings[str(key)] = int(value) if is_number and isinstance(default, int) else value
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"Setting {name!r} is missing")
    return kind(**settings)


def is_positive(value: Any) -> bool:
    """Whether `value` is a finite number above 0."""
    return _fits(value, whole=False) and 0 < value < math.inf


def _fits(value: Any, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not math.isnan(value) and not (whole and value % 1)
