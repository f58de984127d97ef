"""Groups of sites that are altered together: by default one for each operation of each block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import mlx.nn as nn

from precision_lab.errors import InputError, expected, shown
from precision_lab.instrument.sites import Site, select, walk
from precision_lab.model.coded import LINEARS

T = TypeVar("T")

KEYS = ("site", "operation", "block", "stream", "component")
"""What the sites of a group may have in common."""

DEFAULT_KEYS = ("operation", "block")


@dataclass(frozen=True)
class Group:
    """Sites that are altered together.

    - name: unlike that of any other group of a scan; for a group of one site, its address.
    - component, block, operation, stream: what all sites have in common, else None. block: the index of their block;
      operation: their path inside a block, outside of blocks the whole path.
    - sites: their addresses, in order of definition.
    """

    name: str
    component: str | None
    block: int | None
    operation: str | None
    stream: str | None
    sites: tuple[str, ...]


def groups_of(
    components: Mapping[str, nn.Module], patterns: str | Iterable[str] | None = None, by: Sequence[str] = DEFAULT_KEYS
) -> list[Group]:
    """The groups of the sites that `patterns` name, in the order of their first sites.

    patterns: by default, of the linears of the default component. by: sites that agree in all these `KEYS` are one
    group; sites outside of blocks agree in their block with none that is inside. Raises InputError for a pattern that
    matches nothing, for an unknown or repeated key, or for none.
    """
    check_keys(by)
    sites = walk(components)
    chosen = linears(sites) if patterns is None else select(patterns, sites)
    if not chosen:
        raise InputError("of is empty, expected patterns of sites, of=[PATTERN]; this model has no linears by default")
    found: dict[tuple[object, ...], list[Site]] = {}
    for site in chosen:
        found.setdefault(tuple(_value(site, key) for key in by), []).append(site)
    return [_group(members, by) for members in found.values()]


def linears(sites: Iterable[Site]) -> list[Site]:
    """The linears of the default component, however their weights are stored."""
    return [site for site in sites if site.component == site.layout.default and isinstance(site.module, LINEARS)]


def check_keys(by: Sequence[str]) -> None:
    """Raises InputError for an unknown or repeated key, or for none."""
    if not by:
        raise InputError(f"by is [], expected some of {', '.join(KEYS)}")
    for key in by:
        if key not in KEYS:
            raise InputError(f"by: unknown key {shown(key)}, {expected(KEYS, key)}")
    if len(set(by)) < len(by):
        raise InputError(f"by is {list(by)}, expected each key once")


def _value(site: Site, key: str) -> object:
    """What a site has in common with others of its group. Each module outside of blocks is a place of its own."""
    block, operation = site.layout.within_block(site.component, site.path)
    if key == "block":
        return site.component, block or operation
    if key == "operation":
        return site.component, bool(block), operation
    return {"site": str(site), "stream": site.stream, "component": site.component}[key]


def _group(members: Sequence[Site], by: Sequence[str]) -> Group:
    layout = members[0].layout
    component = _common(site.component for site in members)
    block = _common(site.block for site in members)
    operation = _common(layout.within_block(site.component, site.path)[1] for site in members)
    stream = _common(site.stream for site in members)
    name = str(members[0]) if len(members) == 1 else _name(members, by)
    return Group(name, component, block, operation, stream, tuple(map(str, members)))


def _name(members: Sequence[Site], by: Sequence[str]) -> str:
    """The pattern-like address of several sites by the keys that they have in common: `blocks.*.attn.to_q`."""
    first = members[0]
    layout = first.layout
    block, operation = layout.within_block(first.component, first.path)
    if not block or not {"block", "operation"} & set(by):
        path = "**" if "component" in by else ""
    else:
        holder = block if "block" in by else f"{block.rpartition('.')[0]}.*"
        path = f"{holder}.{operation if 'operation' in by else '**'}".rstrip(".")
    named = layout.address(first.component, path) if path else ""
    return " ".join(filter(None, (named, first.stream if "stream" in by else "")))


def _common(values: Iterable[T]) -> T | None:
    """The value that all have, or None."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None
