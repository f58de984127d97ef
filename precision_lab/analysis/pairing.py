"""Which array of one run corresponds to which of another, where their names, depths or models differ.

In this order: patterns that the user gives; the parts that both layouts name (results, pictures, entries and blocks of
streams, residual adds, exits); the same path in the corresponding block and component. The pairs are one to one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from precision_lab.analysis.gate.rounding import operation
from precision_lab.errors import InputError, nearest, shown
from precision_lab.record.address import split_address
from precision_lab.record.glob import compile_glob, expand
from precision_lab.record.layout import Layout

Place = tuple[str, str, str]
"""component, site, port"""
Blocks = Literal["index", "relative"]

_WILDCARD = re.compile(r"\*\*|\*")
_DEEPEST = 4096


@dataclass(frozen=True)
class Pairing:
    """pairs: places of the base with those of the other run. how: by place of the base, what paired it.

    blocks: how blocks correspond. left, right: places without a counterpart.
    """

    pairs: Mapping[Place, Place]
    how: Mapping[Place, str]
    blocks: Blocks
    depths: tuple[int, int]
    left: Sequence[Place] = ()
    right: Sequence[Place] = ()

    @property
    def words(self) -> str:
        """n of m, and how blocks correspond."""
        of = (len(self.pairs) + len(self.left), len(self.pairs) + len(self.right))
        ways = ", ".join(f"{count} by {how}" for how, count in Counter(self.how.values()).items())
        text = f"{len(self.pairs)} of {of[0]} arrays of the base have a counterpart among {of[1]}"
        text += f" ({ways})" if ways else ""
        if self.depths[0] != self.depths[1]:
            text += f"; blocks correspond by {self.blocks}, {self.depths[0]} to {self.depths[1]}"
        return text


@dataclass(frozen=True)
class Renaming:
    """A pattern of the base with that of the other run. A wildcard has the same text on both sides."""

    base: str
    other: str
    expressions: Sequence[tuple[re.Pattern[str], str]] = field(default=(), compare=False)

    @classmethod
    def of(cls, base: str, other: str) -> Renaming:
        """Raises InputError for a malformed pattern, or sides whose wildcards or alternatives differ in number."""
        for pattern in (base, other):
            compile_glob(split_address(pattern)[1])
        lefts, rights = expand(base), expand(other)
        if len(rights) not in (1, len(lefts)):
            raise InputError(
                f"names: {shown(base)} has {len(lefts)} alternatives and {shown(other)} {len(rights)}, expected as many"
            )
        rights = rights * len(lefts) if len(rights) == 1 else rights
        for left, right in zip(lefts, rights, strict=True):
            if _WILDCARD.findall(left) != _WILDCARD.findall(right):
                raise InputError(f"names: {shown(left)} and {shown(right)} have different wildcards, expected the same")
        return cls(base, other, [(_capturing(left), right) for left, right in zip(lefts, rights, strict=True)])

    def apply(self, address: str) -> str | None:
        """The name in the other run; None for an address that the pattern does not match."""
        for expression, right in self.expressions:
            found = expression.fullmatch(address)
            if found:
                parts = _WILDCARD.split(right)
                return "".join(part + text for part, text in zip(parts, [*found.groups(), ""], strict=True))
        return None


def _capturing(pattern: str) -> re.Pattern[str]:
    parts = _WILDCARD.split(pattern)
    wildcards = ["(.+)" if wildcard == "**" else "([^.]*)" for wildcard in _WILDCARD.findall(pattern)]
    return re.compile("".join(re.escape(a) + b for a, b in zip(parts, [*wildcards, ""], strict=True)))


def renamings(sites: Mapping[str, str]) -> list[Renaming]:
    """The patterns of a mapping, in its order."""
    return [Renaming.of(base, other) for base, other in sites.items()]


def places_of(table: pd.DataFrame) -> list[Place]:
    """The places of a table of arrays, in order of execution."""
    rows = table.sort_values("order", kind="stable")[["component", "site", "port"]].drop_duplicates()
    return [(str(a), str(b), str(c)) for a, b, c in rows.itertuples(index=False, name=None)]


def match(
    base: Layout,
    other: Layout,
    places: tuple[Sequence[Place], Sequence[Place]],
    renamed: Sequence[Renaming] = (),
    blocks: Blocks | None = None,
) -> Pairing:
    """Pairs the places of two runs. blocks: None is `index` for equal depths, otherwise `relative`.

    Raises InputError for a renaming that matches no place of the base, or leads to none of the other run.
    """
    depths = (base.depth, other.depth)
    by: Blocks = blocks or ("index" if depths[0] == depths[1] else "relative")
    pairs: dict[Place, Place] = {}
    how: dict[Place, str] = {}

    def pair(one: Place, two: Place, way: str) -> None:
        if one not in pairs and two not in taken:
            pairs[one], how[one] = two, way
            taken.add(two)

    taken: set[Place] = set()
    for renaming in renamed:
        for one, two in _renamed(renaming, base, other, places):
            pair(one, two, "names=")
    numbers = [_numbers(layout, own) for layout, own in ((base, places[0]), (other, places[1]))]
    same = {component: _blocks(by, *(n.get(component, 0) for n in numbers)) for component in numbers[0]}
    components = {component: component for component in base.components if component in other.components}
    components.setdefault(base.default, other.default)
    streams = {name: name for name in base.streams if name in other.streams}
    if not streams and base.main_stream and other.main_stream:
        streams = {base.main_stream: other.main_stream}
    for key, way in ((_role, "their part in the layout"), (_path, "name")):
        theirs = _unique((key(other, place, {}, {}, {}), place) for place in places[1] if place not in taken)
        ours = _unique(
            (key(base, place, same, components, streams), place) for place in places[0] if place not in pairs
        )
        for name, place in ours.items():
            if name in theirs:
                pair(place, theirs[name], way)
    left = [place for place in places[0] if place not in pairs]
    return Pairing(pairs, how, by, depths, left, [place for place in places[1] if place not in taken])


def _renamed(
    renaming: Renaming, base: Layout, other: Layout, places: tuple[Sequence[Place], Sequence[Place]]
) -> Iterable[tuple[Place, Place]]:
    """The pairs that a renaming makes; a port is the same on both sides, or the stream's where those differ."""
    known: dict[tuple[str, str], list[Place]] = {}
    for place in places[1]:
        known.setdefault(place[:2], []).append(place)
    matched, found = [], 0
    for place in places[0]:
        name = renaming.apply(base.address(place[0], place[1]))
        if name is None:
            continue
        matched.append(name)
        for there in known.get(split_address(name, other.default), []):
            if there[2] == place[2]:
                found += 1
                yield place, there
    if not matched:
        names = [base.address(*place[:2]) for place in places[0]]
        raise InputError(f"names: {shown(renaming.base)} matches no array of the base. {nearest(renaming.base, names)}")
    if not found:
        names = [other.address(*place[:2]) for place in places[1]]
        raise InputError(
            f"names: {shown(renaming.base)} leads to {shown(matched[0])}, which the other run has not recorded. "
            f"{nearest(matched[0], names)}"
        )


def _numbers(layout: Layout, places: Sequence[Place]) -> dict[str, int]:
    """The number of blocks of each component: of the default one as its layout says, of others as recorded."""
    found: dict[str, int] = dict.fromkeys(layout.components, 0)
    for component, site, _ in places:
        block = layout.block_of(component, site)
        if block is not None:
            found[component] = max(found.get(component, 0), block + 1)
    return found | ({layout.default: layout.depth} if layout.depth else {})


def _blocks(by: Blocks, ours: int, theirs: int) -> dict[int, int]:
    """The blocks of two depths that correspond, one to one: each of the shallower with the nearest of the deeper."""
    if by == "index" or ours == theirs or min(ours, theirs) < 1 or max(ours, theirs) > _DEEPEST:
        return {block: block for block in range(min(ours, theirs, _DEEPEST))}
    few, many = sorted((ours, theirs))
    step = (many - 1) / (few - 1) if few > 1 else 0
    pairs = {block: int(block * step + 0.5) for block in range(few)}
    return pairs if ours < theirs else {far: near for near, far in pairs.items()}


def _unique(found: Iterable[tuple[Hashable, Place]]) -> dict[Hashable, Place]:
    """The places by their keys, without those whose key is shared or None."""
    listed = [(key, place) for key, place in found if key is not None]
    counts = Counter(key for key, _ in listed)
    return {key: place for key, place in listed if counts[key] == 1}


Blockwise = Mapping[str, Mapping[int, int]]


def _role(
    layout: Layout, place: Place, same: Blockwise, components: Mapping[str, str], streams: Mapping[str, str]
) -> Hashable:
    """What the layout says about a place, in terms of the other run where mappings are given; None for nothing."""
    component, site, port = place
    if port == "out" and layout.result.address == f"{component}:{site}":
        return ("result",)
    if port == "out" and layout.picture == f"{component}:{site}":
        return ("picture",)
    if component != layout.default:
        return None
    block = layout.block_of(component, site)
    if block is not None:
        block = same[component].get(block, -1) if component in same else block
    for name, stream in layout.streams.items():
        as_there = streams.get(name, f"only {name}") if streams else name
        if stream.entry == site and port == "out":
            return ("entry", as_there)
        if stream.port == port and layout.is_block(component, site):
            return ("block", as_there, block)
    own = layout.stream_of(component, site)
    own = streams.get(own, own) if streams else own
    for part, pattern in layout.adds.items():
        if port == "out" and compile_glob(pattern).fullmatch(site):
            return ("add", part, own, block)
    if site in layout.exits and port == "out":
        return ("exit", len(layout.exits) - layout.exits.index(site))
    return None


def _path(
    layout: Layout, place: Place, same: Blockwise, components: Mapping[str, str], streams: Mapping[str, str]
) -> Hashable:
    """The component, the block in terms of the other run, the path inside and the port."""
    component, site, port = place
    block = layout.block_of(component, site)
    ports = {stream.port for stream in layout.streams.values()}
    if component == layout.default and port in ports and layout.is_block(component, site):
        return None  # a stream, which has no counterpart where its part in the layout has none
    inside = site if block is None else layout.within_block(component, site)[1]
    if block is not None and component in same:
        block = same[component].get(block, -1)
        if block < 0:
            return None
    there = components.get(component) if components else component
    return None if there is None else (there, block is None, inside, block, port)


def summed_up(layout: Layout, places: Sequence[Place]) -> dict[str, int]:
    """Operations with the number of their places: those of all blocks are one, `transformer_blocks.*.img_mlp`."""
    return dict(Counter(layout.address(c, operation(layout, c, s), p) for c, s, p in places))
