"""The protocol of a technique, and the application of several techniques to a model for the length of a run."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Protocol, runtime_checkable

import mlx.nn as nn

from precision_lab.errors import InputError, shown
from precision_lab.instrument.sites import Site, Wrapper, select, walk
from precision_lab.instrument.swap import swapped
from precision_lab.numerics.scales import Division
from precision_lab.record.manifest import Coverage

log = logging.getLogger(__name__)

Places = Mapping[str, Callable[[Site], nn.Module]]
"""Pattern -> rewrite of the sites that it names."""


@runtime_checkable
class Technique(Protocol):
    """A numerical technique: the modules it rewrites (`sites`) and their replacements (`rewrite`).

    It is usually a frozen dataclass in a file of its own, whose docstring says what the technique does, why, at what
    cost, and who published it. `preserves_function` and `composes` are usually class variables. Any object with these
    members works, from any package. `ByPlace` helps where different places are rewritten differently.
    """

    @property
    def sites(self) -> Sequence[str]:
        """Patterns of the modules to rewrite."""

    @property
    def preserves_function(self) -> bool:
        """Whether the technique claims that the rewritten model is the same function in exact arithmetic."""

    @property
    def composes(self) -> bool:
        """Whether the technique may share a site with any other; they apply in the order listed."""

    def rewrite(self, site: Site) -> nn.Module:
        """Returns the replacement of the site's module, or that module itself to leave it alone.

        Raises InputError for a class of module that the technique cannot rewrite.
        """


@runtime_checkable
class Dividing(Protocol):
    """A technique with exact scales, which says what each of them divides. The scale chooser fills its parameters."""

    @property
    def divisions(self) -> Mapping[str, Division]:
        """By the name of the parameter that holds the scale, what it divides."""


@runtime_checkable
class Choosing(Protocol):
    """A technique that chooses by measurement on the device at hand when it is applied; the manifest records it."""

    @property
    def choices(self) -> Mapping[str, int]:
        """What it chose, by what the choice is about."""


@runtime_checkable
class Widening(Protocol):
    """A technique that keeps results in fp32 which the plain model stores in the dtype of the computation."""

    @property
    def widens(self) -> Sequence[str]:
        """Patterns of the modules whose results are in fp32, wherever they are stored."""


@runtime_checkable
class FitToModel(Protocol):
    """A technique whose settings, such as a file, fit some models only."""

    def check_model(self, sites: Sequence[Site]) -> None:
        """Raises InputError if the technique does not fit the model that has these sites."""


@runtime_checkable
class OfLinears(Protocol):
    """A technique that rewrites linears themselves. Where an adapter is beside a linear, it gets the linear alone."""

    @property
    def of_linears(self) -> bool:
        """True."""


@runtime_checkable
class Keeping(Protocol):
    """A technique that leaves a module alone where it does not fit. One that fits none of its sites is refused."""

    def kept(self, site: Site) -> str | None:
        """Why `rewrite` leaves the site alone, such as "48 channels, expected a multiple of 256"; None if it does not.

        The module at the site is of a class that the technique rewrites.
        """


class Beside(Wrapper, ABC):
    """A wrapper that adds to the result of a linear. The linear inside stays open to `OfLinears`."""

    @abstractmethod
    def around(self, inner: nn.Module) -> Beside:
        """The same wrapper around another form of the linear."""


def without_adapters(module: nn.Module) -> nn.Module:
    """The linear inside the wrappers that only add to its result."""
    while isinstance(module, Beside):
        module = module.inner
    return module


class ByPlace(ABC):
    """Base class of a technique that rewrites different places differently; a subclass defines `places`."""

    @property
    @abstractmethod
    def places(self) -> Places:
        """The rewrite of every place. The first pattern that names a site decides how the site is rewritten."""

    @property
    def sites(self) -> Sequence[str]:
        """The patterns of all places."""
        return tuple(self.places)

    def rewrite(self, site: Site) -> nn.Module:
        """Applies the rewrite of the first place that names the site. Raises InputError if none does."""
        places = self.places
        pattern = first_naming(places, site)
        if pattern is None:
            raise InputError(f"{type(self).__name__}: {site} is at none of its places, which are {', '.join(places)}")
        return places[pattern](site)


def first_naming(patterns: Iterable[str], site: Site) -> str | None:
    """The first of `patterns` that names `site`, or None."""
    return next((pattern for pattern in patterns if site.named_by(pattern)), None)


def chosen(techniques: Mapping[str, Technique]) -> dict[str, Mapping[str, int]]:
    """What each technique chose by measurement when it was applied; those that chose nothing are left out."""
    choices = {name: t.choices for name, t in techniques.items() if isinstance(t, Choosing)}
    return {name: dict(made) for name, made in choices.items() if made}


def _selected(name: str, technique: Technique, sites: Sequence[Site]) -> list[Site]:
    try:
        return select(technique.sites, sites)
    except InputError as error:
        raise InputError(f"technique {name}: {error}") from error


def _rewritten(name: str, technique: Technique, site: Site) -> nn.Module:
    if isinstance(site.module, Beside) and getattr(technique, "of_linears", False):
        inner = site.module.inner
        changed = _rewritten(name, technique, replace(site, module=inner))
        return site.module if changed is inner else site.module.around(changed)
    module: object = technique.rewrite(site)
    if not isinstance(module, nn.Module):
        raise InputError(
            f"technique {name}: {type(technique).__name__}.rewrite returned {shown(module)} for {site}, "
            "expected a module (site.module leaves it alone)"
        )
    return module


def _check_not_all_kept(name: str, technique: Keeping, sites: Sequence[Site]) -> None:
    alone = (replace(site, module=without_adapters(site.module)) for site in sites)
    reasons = Counter(why for site in alone if (why := technique.kept(site)) is not None)
    if reasons.total() == len(sites):
        said = "; ".join(f"{number} with {why}" for why, number in reasons.most_common(3))
        raise InputError(f"technique {name} leaves all {len(sites)} linears that it names as they are: {said}")


@contextmanager
def applied(components: Mapping[str, nn.Module], techniques: Mapping[str, Technique]) -> Iterator[dict[str, Coverage]]:
    """Applies the techniques in order for the length of the block; afterwards the model is plain again.

    Raises InputError if a pattern matches nothing, if a technique of `Keeping` fits none of the sites that it names, or
    if two techniques rewrite one site and neither composes.
    """
    owners: dict[Site, str] = {}
    coverage = {}
    with ExitStack() as stack:
        for name, technique in techniques.items():
            sites = walk(components)
            if isinstance(technique, FitToModel):
                technique.check_model(sites)
            selected = _selected(name, technique, sites)
            for site in () if technique.composes else selected:
                owner = owners.setdefault(site, name)
                if owner != name:
                    raise InputError(f"Techniques {owner} and {name} both rewrite {site}, and neither composes")
            rewritten = {site: _rewritten(name, technique, site) for site in selected}
            changed = {site: module for site, module in rewritten.items() if module is not site.module}
            if not changed and isinstance(technique, Keeping):
                _check_not_all_kept(name, technique, selected)
            stack.enter_context(swapped(components, changed))
            named = {site.component for site in selected}
            coverage[name] = Coverage(len(changed), sum(site.component in named for site in sites))
            log.info("%s: rewrote %d of %d modules", name, coverage[name].matched, coverage[name].of)
        yield coverage
