"""Addresses: every module of a component by its path, and the selection of some by pattern.

A pattern is `component:glob`; if no component is named, the only one there is, or the transformer. The glob's grammar
stands in `glob`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import mlx.nn as nn

from precision_lab.errors import InputError, nearest
from precision_lab.instrument.glob import DEFAULT_COMPONENT, compile_glob, spell, split_pattern
from precision_lab.model.qwen_image.streams import stream_of

_BLOCK = re.compile(r"^(?:\w+\.)*?(?:transformer_blocks|layers|blocks|h|stages)\.(\d+)(?:\.|$)")


class Wrapper(nn.Module):
    """A module around another that takes over its address: the children of `inner` keep theirs.

    What a technique puts in place of a module it still calls; subclasses define `__call__`.
    """

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner


@dataclass(frozen=True)
class Site:
    """A module and its address; equal if the addresses are."""

    component: str
    path: str
    module: nn.Module = field(compare=False, repr=False)
    spelled: str = field(default="", compare=False, repr=False)
    """`path` with its indices counted from both ends, see `glob.spell`."""

    def __str__(self) -> str:
        return self.path if self.component == DEFAULT_COMPONENT else f"{self.component}:{self.path}"

    @cached_property
    def block(self) -> int | None:
        """Index of the block or layer that the module is, or is part of, the outermost if blocks are nested."""
        found = _BLOCK.match(self.path)
        return int(found[1]) if found else None

    @cached_property
    def stream(self) -> str:
        """img, txt, joint or -."""
        return stream_of(self.path) if self.component == DEFAULT_COMPONENT else "-"

    def named_by(self, pattern: str) -> bool:
        """Whether `pattern` names this site. Raises InputError for a malformed one."""
        component, glob = split_pattern(pattern)
        return component == self.component and compile_glob(glob).fullmatch(self.spelled or self.path) is not None


def walk(components: Mapping[str, nn.Module]) -> list[Site]:
    """All sites in order of definition; a module that stands at two addresses is listed at the first."""
    seen: set[int] = set()
    found = []
    for component, root in components.items():
        modules = list(_descend(root, ""))
        spelled = spell(path for path, _ in modules)
        for path, module in modules:
            if id(module) not in seen:
                seen.add(id(module))
                found.append(Site(component, path, module, spelled[path]))
    return found


def children(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Named entries of a module, or of what it wraps, that are modules or hold some."""
    while isinstance(module, Wrapper):
        module = module.inner
    yield from ((key, value) for key, value in module.items() if isinstance(value, dict | list | tuple))


def _descend(node: Any, path: str) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(node, nn.Module):
        if path:
            yield path, node
        entries = children(node)
    elif isinstance(node, dict):
        entries = iter(node.items())
    elif isinstance(node, list | tuple):
        entries = ((str(i), value) for i, value in enumerate(node))
    else:
        return
    for key, value in entries:
        yield from _descend(value, f"{path}.{key}" if path else key)


def select(patterns: str | Iterable[str], sites: Sequence[Site]) -> list[Site]:
    """The sites that at least one pattern names, in the order of `sites`.

    Raises InputError for a pattern that names none, with the nearest paths.
    """
    chosen: set[Site] = set()
    components = {site.component for site in sites}
    default = components.pop() if len(components) == 1 else DEFAULT_COMPONENT
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        component, glob = split_pattern(pattern, default)
        candidates = [site for site in sites if site.component == component]
        if not candidates:
            raise InputError(
                f"Site pattern {pattern!r}: unknown component {component!r}. "
                + nearest(component, (site.component for site in sites))
            )
        matched = [site for site in candidates if site.named_by(f"{component}:{glob}")]
        if not matched:
            raise InputError(f"Site pattern {pattern!r} matches nothing. {_near_misses(glob, candidates)}")
        chosen.update(matched)
    return [site for site in sites if site in chosen]


def _near_misses(glob: str, candidates: Sequence[Site]) -> str:
    """Suggestions with block numbers starred out, or they would differ in nothing else."""
    shapes = {re.sub(r"\.\d+\.", ".*.", site.path) for site in candidates}
    return nearest(re.sub(r"\.(-?\d+|\{[^}]*\})\.", ".*.", glob), shapes)
