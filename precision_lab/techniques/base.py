"""What a technique is, and how several are applied to a model for the length of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site, select, walk
from precision_lab.instrument.swap import swapped

log = logging.getLogger(__name__)


@runtime_checkable
class Technique(Protocol):
    """A numerical technique: where (`sites`) and what (`rewrite`).

    Usually a frozen dataclass in a file of its own whose docstring says what it does, why, at what cost, and who
    published it. Anything with these members works, from any package.
    """

    @property
    def sites(self) -> Sequence[str]:
        """Patterns of the modules to rewrite."""

    @property
    def preserves_function(self) -> bool:
        """Whether the rewritten model claims to be the same function in exact arithmetic."""

    @property
    def composes(self) -> bool:
        """Whether it may share a site with any other technique, in the order given."""

    def rewrite(self, site: Site) -> nn.Module:
        """The module to put at the site (the one there: leave it). Raises InputError for a kind it cannot rewrite."""


class Coverage(NamedTuple):
    """How many modules a technique rewrote, of how many the components it names have."""

    matched: int
    of: int


@contextmanager
def applied(components: Mapping[str, nn.Module], techniques: Mapping[str, Technique]) -> Iterator[dict[str, Coverage]]:
    """The model with the techniques, one after another; the plain model again afterwards.

    Raises InputError if a pattern matches nothing, or two techniques meet at a site and neither composes.
    """
    owners: dict[Site, str] = {}
    coverage = {}
    with ExitStack() as stack:
        for name, technique in techniques.items():
            sites = walk(components)
            chosen = select(technique.sites, sites)
            for site in chosen:
                owner = owners.get(site)
                if owner and not (technique.composes or techniques[owner].composes):
                    raise InputError(f"Techniques {owner} and {name} both rewrite {site}, and neither composes")
                owners[site] = name
            rewritten = {site: technique.rewrite(site) for site in chosen}
            changed = {site: module for site, module in rewritten.items() if module is not site.module}
            stack.enter_context(swapped(components, changed))
            named = {site.component for site in chosen}
            coverage[name] = Coverage(len(changed), sum(site.component in named for site in sites))
            log.info("%s: rewrote %d of %d modules", name, *coverage[name])
        yield coverage
