"""A second tree of modules that shares the arrays of the first, so that one can be rewritten and the other not."""

from __future__ import annotations

import copy
from dataclasses import is_dataclass
from typing import Any, TypeVar

import mlx.nn as nn

T = TypeVar("T")


def replica(holder: T) -> T:
    """A copy of a module, or of an object that holds modules, with new modules and shared arrays.

    Modules in the attributes of `holder`, and in containers and dataclasses there, are copied with their classes and
    names. A module with two addresses is one module in the replica too. Takes a few milliseconds for 60 blocks.
    """
    copied: dict[int, Any] = {}
    copy_of: T = _replica(holder, copied) if isinstance(holder, nn.Module) else _attributes(holder, copied)
    return copy_of


def _replica(node: Any, copied: dict[int, Any]) -> Any:
    if isinstance(node, nn.Module):
        if id(node) not in copied:
            copied[id(node)] = duplicate = copy.copy(node)
            for key, value in node.items():
                dict.__setitem__(duplicate, key, _replica(value, copied))
        return copied[id(node)]
    if isinstance(node, dict):
        return {key: _replica(value, copied) for key, value in node.items()}
    if isinstance(node, list | tuple) and not hasattr(node, "_fields"):
        return type(node)(_replica(value, copied) for value in node)
    if is_dataclass(node) and not isinstance(node, type):
        return _attributes(node, copied)
    return node


def _attributes(node: Any, copied: dict[int, Any]) -> Any:
    """A copy of an object with its attributes replicated. Objects may refer to each other, so each is copied once."""
    if id(node) not in copied:
        copied[id(node)] = duplicate = copy.copy(node)
        vars(duplicate).update({name: _replica(value, copied) for name, value in vars(node).items()})
    return copied[id(node)]
