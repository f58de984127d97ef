"""Families of rules chosen by Optuna: one candidate for each operation in each range of blocks.

A family has a weight, and the bytes that a budget allows beyond the smallest recipe are handed out in the order of the
weights, so that every proposal fits. Where several candidates take the same bytes, Optuna chooses among them.

The sampler is Optuna's tree-structured Parzen estimator (Bergstra et al. 2011; Watanabe 2023, arXiv:2304.11127), which
needs no sensitivities. It is what the knapsack and the exchange have to beat.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from precision_lab.analysis.search.clusters import Cluster, label, of_ranges
from precision_lab.analysis.search.exchange import BATCH
from precision_lab.analysis.search.menu import Choice, Menu
from precision_lab.errors import InputError

EXTRA = "search"
"""The extra of this package that brings Optuna."""


def optuna() -> ModuleType:
    """Optuna. Raises InputError that names the extra if it is not installed."""
    try:
        import optuna as found
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise InputError(
            f"Families of rules are sampled by Optuna, which is not installed: pip install 'precision-lab[{EXTRA}]'"
        ) from error
    found.logging.set_verbosity(found.logging.ERROR)
    return found


def is_installed() -> bool:
    """Whether Optuna can be imported."""
    try:
        optuna()
    except InputError:
        return False
    return True


@dataclass(frozen=True)
class _Family:
    """Groups that have one candidate. levels: candidates by the bytes that they take together, in ascending order."""

    name: str
    cluster: Cluster
    levels: tuple[tuple[int, tuple[str, ...]], ...]


@dataclass
class Families:
    """Ask and tell: `ask` returns choices to try, `tell` takes their drifts, until `ask` returns none.

    limit: bytes that no choice may exceed. evaluations: the most choices that are tried. ranges: of blocks, for each
    operation. storage: a file in which Optuna keeps the study, for its own dashboard; it decides nothing, and is
    written anew. `best` is the choice with the least drift so far, None before any.
    """

    menu: Menu
    limit: int
    evaluations: int
    ranges: int = 4
    seed: int = 0
    storage: Path | None = None
    best: Choice | None = field(init=False, default=None)
    drifts: tuple[float, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        found = optuna()
        self._families = [self._family(cluster) for cluster in of_ranges(self.menu, self.ranges)]
        distributions = found.distributions
        self._spaces: dict[str, Any] = {
            family.name: distributions.FloatDistribution(0.0, 1.0) for family in self._families
        }
        for family in self._families:
            for at, (_, candidates) in enumerate(family.levels):
                if len(candidates) > 1:
                    self._spaces[f"{family.name}: {at}"] = distributions.CategoricalDistribution(candidates)
        with _quiet():
            backend = None
            if self.storage is not None:
                self.storage.parent.mkdir(parents=True, exist_ok=True)
                self.storage.unlink(missing_ok=True)
                journal = found.storages.journal.JournalFileBackend(str(self.storage))
                backend = found.storages.JournalStorage(journal)
            sampler = found.samplers.TPESampler(seed=self.seed, multivariate=True, constant_liar=True)
            self._study: Any = found.create_study(storage=backend, sampler=sampler, direction="minimize")
        smallest = self.menu.fixed + sum(family.levels[0][0] for family in self._families)
        self._left = self.evaluations if smallest <= self.limit else 0
        self._asked: list[tuple[Any, Choice]] = []

    def ask(self) -> list[Choice]:
        """The next choices to try; none when the evaluations are used up, or where nothing is within the limit."""
        assert not self._asked, "tell the drifts of the choices first"
        with _quiet():
            trials = [self._study.ask(self._spaces) for _ in range(min(BATCH, self._left))]
        self._asked = [(trial, self._choice(trial.params)) for trial in trials]
        self._left -= len(self._asked)
        return [choice for _, choice in self._asked]

    def tell(self, drifts: Sequence[Sequence[float]]) -> None:
        """The drift of each choice asked for, in every case; NaN where it was not finite."""
        asked, self._asked = self._asked, []
        with _quiet():
            for (trial, choice), own in zip(asked, drifts, strict=True):
                value = _logarithm(own)
                self._study.tell(trial, value)
                if self.best is None or value < _logarithm(self.drifts):
                    self.best, self.drifts = choice, tuple(own)

    def _family(self, cluster: Cluster) -> _Family:
        by_bytes: dict[int, list[str]] = {}
        for candidate in self.menu.candidates:
            own = [self._option(at, candidate) for at in cluster]
            if any(self.menu.options[at][each].candidate == candidate for at, each in zip(cluster, own, strict=True)):
                total = sum(self.menu.options[at][each].nbytes for at, each in zip(cluster, own, strict=True))
                by_bytes.setdefault(total, []).append(candidate)
        levels = tuple((total, tuple(by_bytes[total])) for total in sorted(by_bytes))
        return _Family(label([self.menu.places[at] for at in cluster]), cluster, levels)

    def _option(self, at: int, candidate: str) -> int:
        """The number of a candidate at a group; where it does not fit, that which leaves the group as it is."""
        return next((number for number, option in enumerate(self.menu.options[at]) if option.candidate == candidate), 0)

    def _choice(self, parameters: Mapping[str, Any]) -> Choice:
        """All families at their smallest, raised level by level in the order of their weights while it fits.

        A family of weight w and n levels reaches level j before another reaches its own if j / n - w is smaller.
        """
        steps = sorted(
            (level / len(family.levels) - parameters[family.name], at, level)
            for at, family in enumerate(self._families)
            for level in range(1, len(family.levels))
        )
        reached = [0] * len(self._families)
        size = self.menu.fixed + sum(family.levels[0][0] for family in self._families)
        for _, at, level in steps:
            levels = self._families[at].levels
            more = levels[level][0] - levels[level - 1][0]
            if reached[at] == level - 1 and size + more <= self.limit:
                reached[at], size = level, size + more
        choice = list(self.menu.stored)
        for family, level in zip(self._families, reached, strict=True):
            candidates = family.levels[level][1]
            candidate = candidates[0] if len(candidates) == 1 else parameters[f"{family.name}: {level}"]
            for at in family.cluster:
                choice[at] = self._option(at, candidate)
        return tuple(choice)


def _logarithm(drifts: Sequence[float]) -> float:
    """The mean over cases of the logarithm of the drift; infinite where one is not finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = float(np.log(np.asarray(drifts, dtype=np.float64)).mean())
    return math.inf if math.isnan(mean) else mean


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager without the warnings on options that Optuna calls experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
