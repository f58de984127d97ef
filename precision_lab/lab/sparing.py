"""Variants in which some groups of sites are spared and all others altered, to find those that matter."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Components, Site, select, walk
from precision_lab.lab.candidates import Candidate
from precision_lab.lab.groups import Group
from precision_lab.lab.trials import Trial
from precision_lab.record.address import split_address
from precision_lab.record.patterns import patterns_of
from precision_lab.techniques.base import Technique
from precision_lab.techniques.other_weights import arrays_of, modules_of


@dataclass(frozen=True)
class Part:
    """A technique of the variants. spares: whether it is applied at the groups that are spared, or at all others.

    sites: addresses of those that it can be applied at.
    """

    candidate: Candidate
    spares: bool
    sites: frozenset[str]


@dataclass(frozen=True)
class Sparing:
    """The variants.

    dtype: the text of a `Compute`. nodes: of the techniques that all variants have, by name. parts: applied after
    those, in order. groups: what can be spared. addresses: of all modules, in order of definition; default: the
    component of an address without one.
    """

    dtype: str
    nodes: Mapping[str, Mapping[str, Any]]
    parts: Sequence[Part]
    groups: Sequence[Group]
    addresses: Sequence[str]
    default: str

    @property
    def names(self) -> list[str]:
        return [group.name for group in self.groups]

    def sites(self, names: Collection[str]) -> list[str]:
        """The addresses of the sites of these groups, in order of definition."""
        chosen = {site for group in self.groups if group.name in names for site in group.sites}
        return [address for address in self.addresses if address in chosen]

    def patterns(self, sites: Iterable[str]) -> list[str]:
        """Short patterns that name exactly these sites."""
        places = [split_address(address, self.default) for address in self.addresses]
        return patterns_of([split_address(site, self.default) for site in sites], places, self.default)

    def recipe(self, spared: Collection[str]) -> dict[str, dict[str, Any]]:
        """The techniques of the parts where these groups are spared, by name, as `conf/technique` holds them."""
        kept, found = set(self.sites(spared)), {}
        everything = {site for group in self.groups for site in group.sites}
        for part in self.parts:
            chosen = part.sites & (kept if part.spares else everything - kept)
            if chosen:
                ordered = [address for address in self.addresses if address in chosen]
                found[part.candidate.name] = part.candidate.node(self.patterns(ordered))
        return found

    def trial(self, spared: Collection[str], label: str = "trial") -> Trial:
        """The variant in which these groups are spared."""
        return Trial(self.dtype, {**self.nodes, **self.recipe(spared)}, label)


def addresses_of(components: Components) -> list[str]:
    """The addresses of all modules, in order of definition."""
    return [str(site) for site in walk(components)]


def accepting(candidate: Candidate, components: Components, patterns: str | Sequence[str] | None) -> frozenset[str]:
    """The addresses of the sites that a candidate can rewrite.

    patterns: by default, of the modules of the default component that hold no others, of which those that the candidate
    refuses are left out. Raises InputError for a pattern that matches nothing, and if nothing is left.
    """
    sites = walk(components)
    if patterns is not None:
        return frozenset(map(str, select(patterns, sites)))
    technique = candidate.technique(["**"])
    leaves = [site for site in sites if site.component == components.layout.default and not site.module.children()]
    found = frozenset(str(site) for site in leaves if _accepts(technique, site))
    if not found:
        raise InputError(f"{candidate.name} can rewrite no module of this model by itself. Name some with of=[PATTERN]")
    return found


def named_by(technique: Technique, components: Components) -> frozenset[str]:
    """The addresses of the sites of a technique."""
    return frozenset(map(str, select(technique.sites, walk(components))))


def leaves_of(components: Components) -> frozenset[str]:
    """The addresses of the modules of the default component that hold no others."""
    default = components.layout.default
    return frozenset(str(site) for site in walk(components) if site.component == default and not site.module.children())


def differing(components: Components, other: Any, dtype: str) -> frozenset[str]:
    """The addresses of the modules whose own arrays differ from those of another source of the same architecture.

    Raises InputError if a module of one is missing in the other, or has arrays of another shape.
    """
    mine = {(site.component, site.path): site for site in walk(components)}
    theirs = modules_of(other, dtype)
    for place in mine.keys() ^ theirs.keys():
        raise InputError(
            f"between: the two checkpoints differ in the module {place[1]}, expected the same architecture"
        )
    return frozenset(str(site) for place, site in mine.items() if not _same(site, theirs[place]))


def _same(site: Site, other: nn.Module) -> bool:
    own, others = arrays_of(site.module), arrays_of(other)
    if own.keys() != others.keys() or type(site.module) is not type(other):
        return False
    for name, array in own.items():
        if array.shape != others[name].shape:
            shapes = f"{tuple(array.shape)} and {tuple(others[name].shape)}"
            raise InputError(f"between: {site} has {name} of shapes {shapes}, expected the same architecture")
        if array.dtype != others[name].dtype or not bool(mx.array_equal(array, others[name], equal_nan=True)):
            return False
    return True


def _accepts(technique: Technique, site: Site) -> bool:
    try:
        return technique.rewrite(site) is not site.module
    except InputError:
        return False
