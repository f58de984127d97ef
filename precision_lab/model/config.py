"""The base class of typed configurations: the known keys of a `config.json`, checked.

Each subclass reads the mapping in a checkpoint, keeps the keys that the model uses and returns the names of the others,
so that a loader can report them. Releases differ in keys that have no effect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

from precision_lab.errors import InputError

_STORAGE_KEYS = {"quantization", "quantization_config"}
"""Keys that describe how the weights are stored, see stored_quantization."""

LARGEST = 1 << 24
"""The largest size that a configuration may state, a hundred times the largest of any published model."""

LARGEST_COUNT = 256
"""The largest number of layers: each is a Python object, which is made before its weights are compared."""


@dataclass(frozen=True)
class Config:
    """Base class that reads the known keys of a mapping and checks the type and range of each value."""

    counts: ClassVar[tuple[str, ...]] = ()
    """Keys that are numbers of layers."""

    @classmethod
    def check_class(cls, raw: Mapping[str, Any]) -> None:
        """Raises InputError if `raw` names the class of a model that the subclass does not describe."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> tuple[Self, tuple[str, ...]]:
        """The configuration and the sorted names of the ignored keys, except for metadata (names that start with _).

        Raises InputError for the configuration of another class, and for a value of the wrong type or out of range.
        """
        cls.check_class(raw)
        defaults = {f.name: f.default for f in fields(cls)}
        hints = get_type_hints(cls)
        values = {}
        for key in sorted(defaults.keys() & raw.keys()):
            try:
                values[key] = _coerce(raw[key], hints[key])
            except TypeError as error:
                raise InputError(f"{key} is {short(raw[key])}, expected a value like {defaults[key]!r}") from error
            _check_range(key, values[key], LARGEST_COUNT if key in cls.counts else LARGEST)
        ignored = sorted(k for k in raw.keys() - defaults.keys() - _STORAGE_KEYS if not k.startswith("_"))
        return cls(**values), tuple(ignored)


def _coerce(value: Any, hint: Any) -> Any:
    """`value` as the annotated type; a list is accepted for a tuple and an integer for a float.

    Raises TypeError for other types, and for integers below 1, because all of them are sizes or counts.
    """
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_coerce(item, get_args(hint)[0]) for item in value)
    if NoneType in get_args(hint):
        return None if value is None else _coerce(value, get_args(hint)[0])
    if hint is float and type(value) is int:
        return float(value) if abs(value) <= LARGEST else math.inf
    # not isinstance, which would accept a bool as an integer
    if type(value) is not hint or (hint is int and value < 1):
        raise TypeError
    return value


def _check_range(key: str, value: Any, largest: int) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise InputError(f"{key} holds a number that is not finite or above {LARGEST}, expected a smaller one")
        if isinstance(number, int) and number > largest:
            raise InputError(f"{key} is {short(number)}, expected at most {largest}")
    if isinstance(value, tuple) and len(value) > LARGEST_COUNT:
        raise InputError(f"{key} has {len(value)} entries, expected at most {LARGEST_COUNT}")


def short(value: Any) -> str:
    """`value` as a message shows it. An integer of thousands of digits has no decimal form in Python."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_axes(axes: tuple[int, ...], head_dim: int) -> None:
    """Raises InputError unless `axes`, the channels of a head that each axis of RoPE rotates, fit the head."""
    if len(axes) != 3 or sum(axes) != head_dim or any(dim % 2 for dim in axes):
        raise InputError(
            f"axes_dims_rope {short(list(axes))} must be three even numbers that add up to "
            f"attention_head_dim {head_dim}"
        )


def section(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object that `raw` holds under `key`, empty if it holds none. Raises InputError for another value."""
    value = raw.get(key) or {}
    if not isinstance(value, Mapping):
        raise InputError(f"{key} is {short(value)}, expected an object")
    return value
