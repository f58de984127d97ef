"""Replaces modules within a context, and restores them afterwards even if an exception is raised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.nn as nn

from precision_lab.instrument.sites import Site, Wrapper


@contextmanager
def swapped(components: Mapping[str, nn.Module], replacements: Mapping[Site, nn.Module]) -> Iterator[None]:
    """Context manager that replaces the module at each site with `replacements[site]`.

    A function compiled with `mx.compile` before the swap silently keeps calling the old modules. The caller must
    compile it again.
    """
    undo: list[tuple[Any, str | int, Any]] = []
    try:
        for site, module in replacements.items():
            holder, key = _holder(components[site.component], site.path)
            undo.append((holder, key, holder[key]))
            holder[key] = module
        yield
    finally:
        for holder, key, module in reversed(undo):
            holder[key] = module


def _holder(root: nn.Module, path: str) -> tuple[Any, str | int]:
    """The container that holds the module at `path`, and its key there."""
    *segments, last = path.split(".")
    node: Any = root
    for segment in segments:
        node = _contents(node)
        node = node[int(segment)] if isinstance(node, list | tuple) else node[segment]
    node = _contents(node)
    return node, int(last) if isinstance(node, list) else last


def _contents(node: Any) -> Any:
    while isinstance(node, Wrapper):
        node = node.inner
    return node
