"""Addresses of modules by component and path, and the selection of modules by pattern.

A pattern is `component:glob`; `precision_lab.record.glob` describes the grammar of the glob. A pattern without a
component applies to the only component, or to the default component of the layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

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
    """A module that wraps another and takes over its address. The children of `inner` keep their addresses.

    A technique uses it to replace a module that it still calls. Subclasses define `__call__`.

    opaque: whether the modules inside cannot be observed, because the wrapper compiles them or calls none of them.
    """

    opaque: ClassVar[bool] = False

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner


@dataclass(frozen=True)
class Site:
    """A module and its address. Two sites with equal addresses are equal."""

    component: str
    path: str
    module: nn.Module = field(compare=False, repr=False)
    layout: Layout = field(compare=False, repr=False)
    spelled: str = field(default="", compare=False, repr=False)
    """`path` with its indices counted from both ends; see `glob.spell`."""
    default: str = field(default="", compare=False, repr=False)
    """The component of patterns without one, if it is not that of the layout."""

    def __str__(self) -> str:
        return self.layout.address(self.component, self.path)

    @cached_property
    def block(self) -> int | None:
        """Index of the block or layer that is or contains the module; the outermost if blocks are nested."""
        return self.layout.block_of(self.component, self.path)

    @cached_property
    def stream(self) -> str:
        """The residual stream that the module works on, `joint`, or `-`."""
        return self.layout.stream_of(self.component, self.path)

    def named_by(self, pattern: str) -> bool:
        """Whether `pattern` matches this site. Raises InputError for a malformed pattern."""
        component, glob = split_address(pattern, self.default or self.layout.default)
        return component == self.component and compile_glob(glob).fullmatch(self.spelled or self.path) is not None


def layout_of(components: Mapping[str, nn.Module]) -> Layout:
    """The layout of `Components`; for other mappings, a layout that contains only their names."""
    return components.layout if isinstance(components, Components) else Layout.of(components)


def walk(components: Mapping[str, nn.Module]) -> list[Site]:
    """All sites in order of definition. A module with two addresses is listed only at the first."""
    layout = layout_of(components)
    default = next(iter(components)) if len(components) == 1 else ""
    seen: set[int] = set()
    sites = []
    for component, root in components.items():
        modules = list(_descend(root, ""))
        spelled = spell(path for path, _ in modules)
        for path, module in modules:
            if id(module) not in seen:
                seen.add(id(module))
                sites.append(Site(component, path, module, layout, spelled[path], default))
    return sites


def observable(sites: Sequence[Site]) -> list[Site]:
    """The sites that are not inside an opaque wrapper, in the order of `sites`."""
    opaque = tuple(
        (site.component, f"{site.path}.") for site in sites if isinstance(site.module, Wrapper) and site.module.opaque
    )
    if not opaque:
        return list(sites)
    return [site for site in sites if not any(c == site.component and site.path.startswith(p) for c, p in opaque)]


def children(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Named entries of a module that are modules or containers; for a wrapper, the entries of the wrapped module."""
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
    """The sites that match at least one pattern, in the order of `sites`.

    Raises InputError for a pattern that matches no site; the message lists the nearest paths.
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
        matches = compile_glob(glob).fullmatch
        matched = [site for site in candidates if matches(site.spelled or site.path)]
        if not matched:
            raise InputError(f"Site pattern {pattern!r} matches nothing. {_near_misses(glob, candidates)}")
        chosen.update(matched)
    return [site for site in sites if site in chosen]


def _near_misses(glob: str, candidates: Sequence[Site]) -> str:
    """The nearest paths to `glob`. Block numbers become `*`, since suggestions would otherwise differ only in them."""
    shapes = {re.sub(r"\.\d+\.", ".*.", site.path) for site in candidates}
    return nearest(re.sub(r"\.(-?\d+|\{[^}]*\})\.", ".*.", glob), shapes)
