"""From a choice of candidates at groups of sites to the techniques that carry it out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from precision_lab.instrument.sites import Components, walk
from precision_lab.lab.candidates import Candidate
from precision_lab.lab.groups import Group
from precision_lab.lab.injections import Injection, Rewrites, injections_of
from precision_lab.record.address import NO_STREAM
from precision_lab.record.patterns import patterns_of
from precision_lab.techniques.parts.weight_storage import storage

Nodes = dict[str, dict[str, Any]]
"""Techniques by name, as plain values in the form of `conf/technique`."""


class Recipes:
    """What candidates are at groups of sites of one model. Nothing is evaluated.

    weights: number of linear weights of all components that the groups are in. fixed: bytes of those outside of the
    groups. Raises InputError if a candidate fits no site of any group.
    """

    def __init__(self, components: Components, groups: Sequence[Group], candidates: Sequence[Candidate]):
        sites = {str(site): site for site in walk(components)}
        self.groups, self.candidates = groups, candidates
        self._sites = sites
        self._every = [(site.component, site.path) for site in sites.values()]
        self._candidates = {candidate.name: candidate for candidate in candidates}
        injections, _ = injections_of(components, sites, groups, candidates)
        self._at: dict[tuple[str, str], Injection] = {
            (each.group.name, each.candidate.name): each for each in injections
        }
        chosen = {address for group in groups for address in group.sites}
        searched = {sites[address].component for address in chosen}
        stored = {address: storage(site.module) for address, site in sites.items() if site.component in searched}
        self.weights = sum(each.weights for each in stored.values())
        self.fixed = sum(each.bits // 8 for address, each in stored.items() if address not in chosen)

    @property
    def components(self) -> frozenset[str]:
        """The names of the components that the groups are in."""
        return frozenset(self._sites[address].component for group in self.groups for address in group.sites)

    def nodes(self, assigned: Mapping[str, Sequence[str]], prefix: str = "") -> Nodes:
        """The technique of each candidate at the groups that it is assigned, named after it with a prefix."""
        found: Nodes = {}
        for name, groups in assigned.items():
            patterns = self._patterns(address for group in groups for address in self._at[group, name].sites)
            found[f"{prefix}{name}"] = self._candidates[name].node(patterns)
        return found

    def rewritten(self, candidate: Candidate, groups: Sequence[str]) -> dict[str, Any] | None:
        """The technique of any candidate at those sites of groups that it fits; None if it fits none."""
        addresses = [address for group in self.groups if group.name in set(groups) for address in group.sites]
        rewrites = Rewrites(candidate, addresses, self._sites)
        fitting = [address for address in addresses if rewrites.at(address) is not None]
        return candidate.node(self._patterns(fitting)) if fitting else None

    def _patterns(self, addresses: Iterable[str]) -> list[str]:
        """Short patterns that name exactly these sites."""
        chosen = {(self._sites[address].component, self._sites[address].path) for address in addresses}
        return patterns_of(chosen, self._every, next(iter(self._sites.values())).layout.default)

    def rows(self) -> pd.DataFrame:
        """The bytes that each candidate saves at each group, as rows of a scan without any error."""
        return pd.DataFrame(
            [
                {
                    "group": group.name,
                    "component": group.component or NO_STREAM,
                    "block": group.block,
                    "operation": group.operation,
                    "candidate": name,
                    "prompt_id": 0,
                    "seed": 0,
                    "step": 0,
                    "velocity_error": 0.0,
                    "bytes_saved": injection.bytes_saved,
                    "seconds_saved": float("nan"),
                }
                for (_, name), injection in self._at.items()
                for group in (injection.group,)
            ]
        )

    def stored(self) -> pd.DataFrame:
        """The bits that the linear weights of each site of the groups are stored in."""
        return pd.DataFrame(
            [
                {"group": group.name, "site": address, "stored_bits": storage(self._sites[address].module).bits}
                for group in self.groups
                for address in group.sites
            ]
        )
