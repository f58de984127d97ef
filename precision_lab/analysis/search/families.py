"""Families of rules chosen by Optuna: one candidate for each operation in each range of blocks.

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
from precision_lab.analysis.search.menu import AS_STORED, Choice, Menu
from precision_lab.errors import InputError

EXTRA = "search"
"""The extra of this package that brings Optuna."""

_REFUSED_FOR_EACH = 100
"""How many choices above the limit of bytes the sampler may propose for each that is evaluated; they cost nothing."""


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


@dataclass
class Families:
    """Ask and tell: `ask` returns choices to try, `tell` takes their drifts, until `ask` returns none.

    limit: bytes that no choice may exceed. evaluations: the most choices that are tried. ranges: of blocks, for each
    operation. storage: a file in which Optuna keeps the study, for its own dashboard; it decides nothing, and is
    written anew. `best` is the choice with the least drift so far, None before any.

    A choice above the limit is told to the sampler as infeasible, at no evaluation.
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
        self._clusters: list[Cluster] = of_ranges(self.menu, self.ranges)
        places = self.menu.places
        self._spaces = {
            label([places[at] for at in cluster]): found.distributions.CategoricalDistribution(self._offered(cluster))
            for cluster in self._clusters
        }
        assert len(self._spaces) == len(self._clusters)
        with _quiet():
            backend = None
            if self.storage is not None:
                self.storage.parent.mkdir(parents=True, exist_ok=True)
                self.storage.unlink(missing_ok=True)
                journal = found.storages.journal.JournalFileBackend(str(self.storage))
                backend = found.storages.JournalStorage(journal)
            sampler = found.samplers.TPESampler(seed=self.seed, multivariate=True, constant_liar=True)
            self._study: Any = found.create_study(storage=backend, sampler=sampler, direction="minimize")
        self._left, self._refused = self.evaluations, self.evaluations * _REFUSED_FOR_EACH
        self._asked: list[tuple[Any, Choice]] = []

    def ask(self) -> list[Choice]:
        """The next choices to try; none when the evaluations are used up, or nothing within the limit is proposed."""
        assert not self._asked, "tell the drifts of the choices first"
        with _quiet():
            while len(self._asked) < min(BATCH, self._left) and self._refused > 0:
                trial = self._study.ask(self._spaces)
                choice = self._choice(trial.params)
                excess = self.menu.nbytes(choice) - self.limit
                trial.set_constraint("bytes", excess / self.limit)
                if excess > 0:
                    self._refused -= 1
                    self._study.tell(trial, math.inf)
                else:
                    self._asked.append((trial, choice))
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

    def _offered(self, cluster: Cluster) -> list[str]:
        """The candidates that some group of a cluster offers, in the menu's order."""
        own = {option.candidate for at in cluster for option in self.menu.options[at]}
        return [name for name in self.menu.candidates if name in own]

    def _choice(self, parameters: Mapping[str, str]) -> Choice:
        choice = list(self.menu.stored)
        for cluster, candidate in zip(self._clusters, (parameters[name] for name in self._spaces), strict=True):
            if candidate != AS_STORED:
                whole = self.menu.uniform(candidate)
                for at in cluster:
                    choice[at] = whole[at]
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
