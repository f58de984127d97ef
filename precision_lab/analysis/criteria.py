"""Criteria of a search: whether a trial is good enough, from the tables of its generations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import pandas as pd

from precision_lab.analysis.claims import Claim, judge
from precision_lab.analysis.measures import CASE, METRICS
from precision_lab.analysis.trials import outcomes
from precision_lab.errors import InputError, nearest
from precision_lab.record.culprits import Outcome
from precision_lab.record.layout import Layout
from precision_lab.record.run import Run

Case = tuple[int, int]
"""A prompt's number and a seed."""


class Criterion(Protocol):
    """A condition on a trial.

    words: it as a phrase, "every value is finite". by_case: whether it must hold for every case by itself, so that one
    case can refute it.
    """

    @property
    def words(self) -> str: ...

    @property
    def by_case(self) -> bool: ...

    def holds(self, run: Run, trial: str, rows: pd.DataFrame) -> bool:
        """Whether it holds for a trial of a run. rows: of `analysis.trials.outcomes`, one for each of its cases."""

    def failing(self, run: Run, trial: str, rows: pd.DataFrame) -> list[Case]:
        """The cases that refute it by themselves."""

    def value(self, run: Run, trial: str, rows: pd.DataFrame) -> float | None:
        """The quantity that decided; None where there is none."""


@dataclass(frozen=True)
class Finite:
    """Every value of the results of all steps, of the residual streams and of the pictures is finite."""

    words = "every value is finite"
    by_case = True

    def holds(self, run: Run, trial: str, rows: pd.DataFrame) -> bool:
        return not self.failing(run, trial, rows)

    def failing(self, run: Run, trial: str, rows: pd.DataFrame) -> list[Case]:
        return _cases(rows[~rows["finite"].astype(bool)])

    def value(self, run: Run, trial: str, rows: pd.DataFrame) -> float | None:
        return None


@dataclass(frozen=True)
class Bound:
    """A metric of claims within a bound, for every case, and every value finite. least, most: the bounds, or None."""

    metric: str
    least: float | None = None
    most: float | None = None
    by_case = True

    def __post_init__(self) -> None:
        known = [name for name, metric in METRICS.items() if not metric.by_round and not metric.columns]
        if self.metric not in known:
            raise InputError(
                f"criterion.metric: {self.metric!r} is no metric of a trial. {nearest(self.metric, known)}"
            )
        if (self.least is None) == (self.most is None):
            raise InputError(f"criterion.metric={self.metric} needs criterion.least= or criterion.most=, one of them")

    def check(self, layout: Layout) -> None:
        """Raises InputError if a model with this layout has no such metric."""
        metric = METRICS[self.metric]
        if (metric.picture and layout.picture is None) or (metric.distribution and not layout.result.distribution):
            raise InputError(f"criterion.metric={self.metric}: the result of this model is its {layout.result.title}")

    @property
    def words(self) -> str:
        return f"{self.metric} is at " + (f"most {self.most:g}" if self.most is not None else f"least {self.least:g}")

    def holds(self, run: Run, trial: str, rows: pd.DataFrame) -> bool:
        return not self.failing(run, trial, rows)

    def failing(self, run: Run, trial: str, rows: pd.DataFrame) -> list[Case]:
        values = self._values(run, trial, rows)
        within = values <= self.most if self.most is not None else values >= self.least
        return _cases(rows[~within.to_numpy(bool)])  # a NaN is within no bound

    def value(self, run: Run, trial: str, rows: pd.DataFrame) -> float | None:
        """The worst over the cases; None if one is not finite. Raises InputError if nothing was measured."""
        values = self._values(run, trial, rows)
        worst = float(values.max(skipna=False) if self.most is not None else values.min(skipna=False))
        return None if pd.isna(worst) else worst

    def _values(self, run: Run, trial: str, rows: pd.DataFrame) -> pd.Series:
        """By case in the order of `rows`; NaN where a value was not finite."""
        values = METRICS[self.metric].measure(run, trial, (), None)
        if values.empty and rows["finite"].all():
            raise InputError(f"criterion: nothing was measured of {self.metric} by the trials of this model")
        cases = pd.MultiIndex.from_frame(rows[CASE].astype(int))
        return values.reindex(cases).where(rows["finite"].to_numpy(bool))


@dataclass(frozen=True)
class Verdict:
    """A claim has the verdict that is wanted, where the trial is in place of the subject of the claim.

    keys: the trials that stand for the other variants of the claim.
    """

    claim: Claim
    keys: Mapping[str, str]
    verdict: str = "supported"
    by_case = False

    @property
    def words(self) -> str:
        return f"claim {self.claim.id} is {self.verdict}"

    def holds(self, run: Run, trial: str, rows: pd.DataFrame) -> bool:
        return judge(self._about(trial), run).verdict == self.verdict

    def failing(self, run: Run, trial: str, rows: pd.DataFrame) -> list[Case]:
        return []

    def value(self, run: Run, trial: str, rows: pd.DataFrame) -> float | None:
        effect = judge(self._about(trial), run).effect
        return None if pd.isna(effect) else effect

    def _about(self, trial: str) -> Claim:
        keys = {**self.keys, self.claim.subject: trial}
        against = self.claim.against and keys[self.claim.against]
        return replace(self.claim, subject=trial, against=against, noise=tuple(keys[name] for name in self.claim.noise))


@dataclass(frozen=True)
class Judgement:
    """A criterion on a trial. rows: of its cases. outcome: what was found; failing: the cases that refute it."""

    holds: bool
    outcome: Outcome
    rows: pd.DataFrame
    failing: list[Case]

    @classmethod
    def of(cls, criterion: Criterion, run: Run, trial: str) -> Judgement:
        """Of a trial of a run of `precision_lab.lab.trials`. Raises InputError if nothing was measured."""
        table = outcomes(run)
        rows = table[table["trial"] == trial]
        value = criterion.value(run, trial, rows)
        bad = rows[rows["first_site"].notna()]
        first = None if bad.empty else bad.iloc[0]
        outcome = Outcome(
            trial=trial,
            value=value,
            finite=bool(rows["finite"].all()),
            first_site=None if first is None else str(first["first_site"]),
            first_port=None if first is None else str(first["first_port"]),
            first_step=None if first is None or pd.isna(first["first_step"]) else int(first["first_step"]),
        )
        return cls(criterion.holds(run, trial, rows), outcome, rows, criterion.failing(run, trial, rows))


def _cases(rows: pd.DataFrame) -> list[Case]:
    return [(int(prompt), int(seed)) for prompt, seed in rows[CASE].itertuples(index=False)]
