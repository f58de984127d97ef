"""From plain values of a configuration to the types that define them, with one wording of what does not fit.

The types are annotations of dataclasses, of pydantic models and of parameters. pydantic compares, and is imported when
a value is first checked. Whole floats such as 20.0 are integers; text, true and false are no numbers; no number is NaN
or infinite. `Annotated[float, "a number above 0"]` words what a message expects, in which {key} is the setting.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from precision_lab.errors import InputError, nearest, shown

if TYPE_CHECKING:
    from pydantic import BaseModel

T = TypeVar("T")

_EXACT = 2**53
_NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_argument")


def checked(kind: type[T], values: Mapping[Any, Any], key: str = "") -> T:
    """An object of the dataclass `kind` from settings by the names of its fields.

    key: the dotted name of the settings, which messages put before each. Raises InputError for an unknown name, with
    the nearest ones, for a missing name, and for a value that does not fit the annotation of its field.
    """
    return cast(T, validated(kind, values, key))


def validated(annotation: Any, values: Any, key: str = "") -> Any:
    """`values` as `annotation`: a dataclass, a pydantic model, or any other type. Raises InputError, see `checked`."""
    from pydantic import ValidationError

    text = json.dumps({"value": whole(values, key)})
    try:
        return _model(annotation).model_validate_json(text).value  # type: ignore[attr-defined]
    except ValidationError as error:
        found = sorted(error.errors(include_url=False), key=lambda each: each["type"] not in _UNKNOWN)
        raise InputError(_message(annotation, found[0], values, key)) from None


def whole(value: Any, key: str = "") -> Any:
    """Plain values with whole floats as integers, and the names of mappings as text.

    Raises InputError for what no setting may be: NaN, an infinity, text with a NUL or half of a surrogate pair, bytes.
    """
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str | int) or isinstance(name, bool):
                raise InputError(f"{key or 'The configuration'} has the name {shown(name)}, expected text")
            _check_text(str(name), f"A name in {key}" if key else "A name")
        return {str(name): whole(entry, joined(key, str(name))) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [whole(entry, f"{key}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{key} is {value}, expected a finite number")
        return int(value) if value.is_integer() and abs(value) <= _EXACT else value
    if isinstance(value, str):
        _check_text(value, key)
    elif value is not None and not isinstance(value, bool | int):
        raise InputError(f"{key} is {shown(value)}, expected text, a number, a list or settings by name")
    return value


def is_positive(value: Any) -> bool:
    """Whether `value` is a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def joined(key: str, name: str) -> str:
    """The dotted name of an entry."""
    return f"{key}.{name}" if key else name


def _check_text(text: str, key: str) -> None:
    if "\0" in text:
        raise InputError(f"{key} is {shown(text)}, expected text without a NUL")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{key} is {shown(text)}, expected text in UTF-8") from None


@cache
def _model(annotation: Any) -> type[BaseModel]:
    """A closed model around `annotation`; a dataclass takes its strictness from there."""
    from pydantic import ConfigDict, create_model

    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
    return create_model("Value", __config__=config, value=(annotation, ...))


def _message(annotation: Any, error: Mapping[str, Any], values: Any, key: str) -> str:
    raised = error.get("ctx", {}).get("error")
    if isinstance(raised, InputError):
        return str(raised)
    *path, last = error["loc"] if len(error["loc"]) > 1 else (*error["loc"], None)
    at = _Place(annotation, key, values)
    for part in path[1:]:
        at = at.below(part)
    if last is not None and error["type"] in _UNKNOWN:
        return f"Unknown setting {joined(at.key, str(last))!r}. {nearest(str(last), at.names())}"
    at = at if last is None else at.below(last)
    if error["type"] in _MISSING:
        return f"Setting {at.key!r} is missing"
    return f"{at.key} is {shown(at.value)}, expected {expected(at.annotation, at.key, at.default)}"


@dataclasses.dataclass(frozen=True)
class _Place:
    """A part of a tree of annotations, with its dotted name, the value that was given, and its default."""

    annotation: Any
    key: str
    value: Any
    default: Any = None

    def names(self) -> list[str]:
        return list(_hints(_bare(self.annotation)[0]))

    def below(self, part: str | int) -> _Place:
        """The place of an entry. pydantic names the alternative of a union too, which is no entry."""
        kinds = _bare(self.annotation)
        if len(kinds) > 1 and not _holds(self.value, part):
            return self
        if isinstance(part, int):
            items = [get_args(kind)[0] for kind in kinds if get_args(kind) and not _is_mapping(kind)]
            return _Place(items[0] if items else Any, f"{self.key}[{part}]", _entry(self.value, part))
        hints = _hints(kinds[0])
        values = [get_args(kind)[1] for kind in kinds if _is_mapping(kind) and get_args(kind)]
        inside = hints.get(part, values[0] if values else Any)
        return _Place(inside, joined(self.key, part), _entry(self.value, part), _default(kinds[0], part))


def expected(annotation: Any, key: str, default: Any = None) -> str:
    """What a message expects of the setting `key`. A default that is a number is an example."""
    if get_origin(annotation) is Annotated:
        words = [text for text in get_args(annotation)[1:] if isinstance(text, str)]
        return words[0].replace("{key}", key) if words else expected(get_args(annotation)[0], key, default)
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        texts = list(dict.fromkeys(expected(kind, key, default) for kind in kinds))
        return " or ".join(texts) + (", or null" if NoneType in get_args(annotation) else "")
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    if annotation in _NOUNS:
        is_example = annotation in (int, float) and isinstance(default, int | float)
        return f"{_NOUNS[annotation]} like {default}" if is_example else _NOUNS[annotation]
    if _hints(annotation) or _is_mapping(annotation):
        return f"settings below it, like {key}.NAME=VALUE"
    if _is_sequence(annotation):
        return f"a list like {key}=[a,b]"
    return "null" if annotation in (None, NoneType) else getattr(annotation, "__name__", str(annotation))


def simple(annotation: Any) -> Any:
    """The part of an annotation that a plain value can be compared with; Any for the rest."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in (*_NOUNS, None, NoneType) or origin is Literal:
        return annotation
    if origin is Annotated:
        return simple(args[0])
    if origin in (Union, UnionType):
        return Union[tuple(map(simple, args))]  # noqa: UP007 (made of values)
    if _is_mapping(annotation):
        return Mapping[str, simple(args[1])] if len(args) == 2 and args[0] is str else Mapping[Any, Any]  # type: ignore[misc]
    if _is_sequence(annotation):
        several = origin is tuple and not (len(args) == 2 and args[1] is Ellipsis)
        return Sequence[Any] if several or not args else Sequence[simple(args[0])]  # type: ignore[misc]
    return Any


def _bare(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, without None and without Annotated."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [bare for kind in get_args(annotation) if kind is not NoneType for bare in _bare(kind)]
    return [annotation]


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """The annotations of the fields of a dataclass or a model; empty for anything else."""
    if not isinstance(kind, type) or get_origin(kind) is not None:
        return {}
    fields = getattr(kind, "__dataclass_fields__", None) or getattr(kind, "model_fields", None) or {}
    hints = get_type_hints(kind, include_extras=True) if fields else {}
    aliases = {name: getattr(field, "alias", None) or name for name, field in fields.items()}
    return {aliases[name]: hints[name] for name in fields if name in hints}


def _default(kind: Any, name: str) -> Any:
    fields = getattr(kind, "__dataclass_fields__", None) or getattr(kind, "model_fields", None) or {}
    return getattr(fields.get(name), "default", None)


def _is_mapping(annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _is_sequence(annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    plain = isinstance(origin, type) and origin not in (str, bytes) and not _is_mapping(origin)
    return plain and (issubclass(origin, Sequence) or origin in (Iterable, set, frozenset))


def _holds(value: Any, part: str | int) -> bool:
    if isinstance(part, int):
        return isinstance(value, Sequence) and not isinstance(value, str)
    return isinstance(value, Mapping) and part in value


def _entry(value: Any, part: str | int) -> Any:
    try:
        return value[part]
    except (KeyError, IndexError, TypeError):
        return None
