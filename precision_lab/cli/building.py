"""From a configuration's node with a `_target_` to the object that it describes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from precision_lab.errors import InputError, described, nearest, shown
from precision_lab.settings import joined, simple, validated

_TARGET = "_target_"
_OF_HYDRA: Mapping[str, Any] = {
    _TARGET: str,
    "_args_": list[Any],
    "_recursive_": bool,
    "_partial_": bool,
    "_convert_": Literal["none", "partial", "object", "all"],
}


def build(node: Any, kind: type, key: str, *others: type) -> Any:
    """The object that a node describes, checked against the protocol it must follow, or one of `others`.

    key: the dotted name of the node. Raises InputError for a `_target_` that cannot be found, for keys and values
    beside it that do not fit its signature, and for an exception of the callable, with the file and the line of it.
    """
    if not isinstance(node, DictConfig) or _TARGET not in node:
        raise InputError(f"{key}: expected a mapping with a {_TARGET}, got {shown(node)}")
    _check(node, key)
    built = _built(node, key)
    if not any(_follows(built, protocol) for protocol in (kind, *others)):
        missing = [name for name in _members(kind) if not hasattr(type(built), name)]
        raise InputError(f"{key}: {node[_TARGET]} is no {kind.__name__}, it lacks {', '.join(missing)}")
    return built


def _built(node: DictConfig, key: str) -> Any:
    try:
        return _instantiated(node)
    except (Exception, SystemExit) as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__  # Hydra puts a line of its own before the message of the class
        if isinstance(cause, InputError):
            raise cause from error
        raise InputError(f"{key}: {node[_TARGET]} raised {described(cause)}") from error


def _instantiated(node: DictConfig) -> Any:
    """The object that a node describes. A configuration is the user's own program: any class of theirs may be named."""
    if "_execution_whitelist_" not in inspect.signature(instantiate).parameters:  # Hydra 1.3
        return instantiate(node, _convert_="all")
    from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS

    return instantiate(node, _convert_="all", _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS)


def _check(node: DictConfig, key: str) -> None:
    """Compares the keys and values beside every `_target_` in the node with the signature of that callable.

    A whole float for an integer is replaced.
    """
    for inner, name in _with_targets(node, key):
        parameters = _parameters(located(inner[_TARGET], f"{name}.{_TARGET}"))
        values: Any = OmegaConf.to_container(inner, resolve=True)
        given = {str(entry): value for entry, value in values.items()}
        for entry, value in given.items():
            full = joined(name, entry)
            if entry in _OF_HYDRA:
                validated(_OF_HYDRA[entry], value, full)
            elif parameters is not None and entry not in parameters:
                raise InputError(f"Unknown setting {full!r}. {nearest(entry, parameters)}")
            else:
                annotation = Any if parameters is None or _describes(value) else parameters[entry].annotation
                fitting = _as_integers(value, validated(annotation, value, full))
                if fitting is not value:
                    with open_dict(inner):
                        inner[entry] = fitting
        if not given.get("_partial_") and not given.get("_args_"):
            for entry, parameter in (parameters or {}).items():
                if parameter.default is parameter.empty and entry not in given:
                    raise InputError(f"Setting {joined(name, entry)!r} is missing")


def _with_targets(node: Any, key: str) -> Iterator[tuple[DictConfig, str]]:
    if isinstance(node, DictConfig):
        if _TARGET in node:
            yield node, key
        for name, entry in node.items():
            yield from _with_targets(entry, joined(key, str(name)))
    elif isinstance(node, ListConfig):
        for index, entry in enumerate(node):
            yield from _with_targets(entry, f"{key}[{index}]")


def located(target: object, key: str) -> Callable[..., Any]:
    """The callable with this dotted name. Raises InputError if there is none, or if importing its module fails."""
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise InputError(f"{key} is {shown(target)}, expected the dotted name of a class, like their_package.Class")
    found, length = _imported(parts, key)
    for at, name in enumerate(parts[length:], length):
        try:
            found = getattr(found, name)
        except AttributeError:
            holder, names = ".".join(parts[:at]), [each for each in dir(found) if not each.startswith("_")]
            raise InputError(f"{key}: {holder} has no {name!r}. {nearest(name, names)}") from None
    if not callable(found):
        raise InputError(f"{key} is {shown(target)}, expected the dotted name of a class; that is no callable")
    return found


def _imported(parts: list[str], key: str) -> tuple[Any, int]:
    """The innermost module of a dotted name, and how many of its parts name the module."""
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        try:
            return importlib.import_module(module), length
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise InputError(f"{key}: importing {module} raised {described(error)}") from error
        except (Exception, SystemExit) as error:
            raise InputError(f"{key}: importing {module} raised {described(error)}") from error
    raise InputError(f"{key} is {'.'.join(parts)!r}, but no module {parts[0]!r} is installed or in the working folder")


def _parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """The parameters of a callable by name, annotated with what plain values can be compared with.

    None where it accepts any name, or does not say.
    """
    try:
        parameters = inspect.signature(target).parameters
    except (ValueError, TypeError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    hints = _hints(target)
    return {
        name: parameter.replace(annotation=simple(hints.get(name, Any)))
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    called = vars(target).get("__init__", target) if isinstance(target, type) else target
    for source in (called, target):
        try:
            return get_type_hints(source)
        except Exception:  # a name that only a type checker imports, or anything that somebody's annotation raises
            continue
    return {}


def _describes(value: Any) -> bool:
    """Whether a value is, or holds, a node that becomes an object."""
    if isinstance(value, Mapping):
        return _TARGET in value or any(map(_describes, value.values()))
    return isinstance(value, list) and any(map(_describes, value))


def _as_integers(value: Any, fitting: Any) -> Any:
    """`value` with the floats that `fitting` has as integers; the same object without any."""
    if isinstance(value, float) and isinstance(fitting, int):
        return fitting
    if isinstance(value, list) and isinstance(fitting, list | tuple) and len(value) == len(fitting):
        items = [_as_integers(*pair) for pair in zip(value, fitting, strict=True)]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def _follows(built: Any, protocol: type) -> bool:
    """As isinstance, which would read the members: a source opens its checkpoint for some."""
    own = getattr(built, "__dict__", {})
    return all(hasattr(type(built), name) or name in own for name in _members(protocol))


def _members(protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_")]
