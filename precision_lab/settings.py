"""From a mapping of settings to the dataclass that defines them, with the checks that are the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from precision_lab.errors import InputError, nearest

T = TypeVar("T")


def checked(kind: type[T], values: Mapping[Any, Any]) -> T:
    """An object of the dataclass `kind` from settings by the names of its fields.

    Raises InputError for an unknown name, with the nearest ones, for a missing one, and where a number is expected and
    something else, or a fraction in place of an integer, was given.
    """
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in known:
            raise InputError(f"Unknown setting {key!r}. {nearest(str(key), known)}")
        default = known[key].default
        is_number = isinstance(default, int | float) and not isinstance(default, bool)
        if is_number and not _fits(value, isinstance(default, int)):
            raise InputError(f"{key} is {value!r}, expected a number like {default}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"Setting {name!r} is missing")
    return kind(**{str(key): value for key, value in values.items()})


def _fits(value: Any, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not (whole and value % 1)
