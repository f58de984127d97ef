"""Addresses: every module of a component by its path, and the selection of some by pattern.

A pattern is `component:glob`; the grammar of the glob is described in `precision_lab.record.glob`. Without a component
it names modules of the only one there is, or of the default one of the layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import mlx.nn as nn

from precision_lab.errors import InputError, nearest
from precision_lab.record.address import split_address
from precision_lab.record.glob import compile_glob, spell
from precision_lab.record.layout import Layout


class Components(dict[str, nn.Module]):
    """Modules by the name of their component, with the layout that describes them."""

    def __init__(self, modules: Mapping[str, nn.Module], layout: Layout):
        super().__init__(modules)
        self.layout = layout


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
    layout: Layout = field(compare=False, repr=False)
    spelled: str = field(default="", compare=False, repr=False)
    """`path` with its indices counted from both ends, see `glob.spell`."""

    def __str__(self) -> str:
        return self.layout.address(self.component, self.path)

    @cached_property
    def block(self) -> int | None:
        """Index of the block or layer that the module is, or is part of, the outermost if blocks are nested."""
        return self.layout.block_of(self.component, self.path)

    @cached_property
    def stream(self) -> str:
        """The residual stream that the module works on, `joint`, or `-`."""
        return self.layout.stream_of(self.component, self.path)

    def named_by(self, pattern: str) -> bool:
        """Whether `pattern` names this site. Raises InputError for a malformed one."""
        component, glob = split_address(pattern, self.layout.default)
        return component == self.component and compile_glob(glob).fullmatch(self.spelled or self.path) is not None


def layout_of(components: Mapping[str, nn.Module]) -> Layout:
    """The layout of `Components`; of other mappings one that knows nothing but their names."""
    return components.layout if isinstance(components, Components) else Layout.of(components)


def walk(components: Mapping[str, nn.Module]) -> list[Site]:
    """All sites in order of definition; a module that has two addresses is listed at the first."""
    layout = layout_of(components)
    seen: set[int] = set()
    sites = []
    for component, root in components.items():
        modules = list(_descend(root, ""))
        spelled = spell(path for path, _ in modules)
        for path, module in modules:
            if id(module) not in seen:
                seen.add(id(module))
                sites.append(Site(component, path, module, layout, spelled[path]))
    return sites


def children(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Named entries of a module, or of the module it wraps, that are modules or hold some."""
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
    default = components.pop() if len(components) == 1 else sites[0].layout.default
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        component, glob = split_address(pattern, default)
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
