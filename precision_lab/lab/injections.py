"""What a scan measures: each candidate at each group of sites alone, where it fits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Components, Site
from precision_lab.lab.candidates import Candidate
from precision_lab.lab.groups import Group
from precision_lab.record.patterns import patterns_of
from precision_lab.techniques.base import Keeping
from precision_lab.techniques.parts.weight_storage import storage

PLACES = 3
"""At how many blocks the noise of an operation is measured: the first, the middle and the last that have it."""


@dataclass(frozen=True)
class Injection:
    """A candidate at a group of sites.

    sites: the addresses in the group that the candidate fits. bytes_saved: of the linear weights there, as the
    candidate stores them against as they are; negative where they take more.
    """

    group: Group
    candidate: Candidate
    sites: tuple[str, ...]
    bytes_saved: int


@dataclass(frozen=True)
class Unfit:
    """A candidate that fits no site of a group, and why not the first."""

    group: Group
    candidate: str
    reason: str


def injections_of(
    components: Components, sites: Mapping[str, Site], groups: Sequence[Group], candidates: Iterable[Candidate]
) -> tuple[list[Injection], list[Unfit]]:
    """Every candidate at every group, the groups in order, and the pairs that do not fit. Nothing is evaluated.

    sites: all of the model by address. Raises InputError if a candidate fits no site of any group.
    """
    fitting: dict[str, dict[str, list[Injection]]] = {group.name: {} for group in groups}
    unfit: list[Unfit] = []
    for candidate in candidates:
        own, reasons = Rewrites(candidate, {address for group in groups for address in group.sites}, sites), []
        for group in groups:
            found = [(address, module) for address in group.sites if (module := own.at(address)) is not None]
            if found:
                saved = sum(_bytes(sites[address].module) - _bytes(module) for address, module in found)
                injection = Injection(group, candidate, tuple(address for address, _ in found), saved)
                fitting[group.name].setdefault(candidate.name, []).append(injection)
            else:
                reasons.append(own.reasons[group.sites[0]])
                unfit.append(Unfit(group, candidate.name, reasons[-1]))
        if len(reasons) == len(groups):
            raise InputError(f"candidate {candidate.name} fits none of the {len(groups)} groups: {reasons[0]}")
    return [injection for of_group in fitting.values() for each in of_group.values() for injection in each], unfit


class Rewrites:
    """What a candidate makes of sites, each made once. reasons: by address, why it does not fit."""

    def __init__(self, candidate: Candidate, addresses: Collection[str], sites: Mapping[str, Site]):
        every = [(site.component, site.path) for site in sites.values()]
        default = next(iter(sites.values())).layout.default
        chosen = {(sites[address].component, sites[address].path) for address in addresses}
        self._technique = candidate.technique(patterns_of(chosen, every, default))
        self._sites = sites
        self.reasons: dict[str, str] = {}

    def at(self, address: str) -> nn.Module | None:
        """The replacement of the module at an address, or None if the candidate does not fit it."""
        site = self._sites[address]
        try:
            module = self._technique.rewrite(site)
        except InputError as error:
            self.reasons[address] = str(error)
            return None
        kept = self._technique.kept(site) if isinstance(self._technique, Keeping) else None
        if kept is not None:
            self.reasons[address] = f"{site} with {kept}"
            return None
        return module


def places_of_noise(groups: Iterable[Group]) -> list[Group]:
    """Groups of each operation at `PLACES` blocks, at which the noise of rounding is measured."""
    alike: dict[object, list[Group]] = {}
    for group in groups:
        alike.setdefault((group.component, group.operation, group.stream), []).append(group)
    chosen = {
        members[round(at * (len(members) - 1) / (PLACES - 1))].name
        for members in alike.values()
        for at in range(PLACES)
    }
    return [group for members in alike.values() for group in members if group.name in chosen]


def _bytes(module: nn.Module) -> int:
    """Those of the linear weights of a module and of those inside it."""
    return sum(storage(each).bits for _, each in module.named_modules()) // 8
