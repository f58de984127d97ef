"""The loop of `search`: strategies ask for choices, trials evaluate them, and the final recipes meet held-out cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd

from precision_lab.analysis.search.exchange import Accepted, Exchange, mean_ratio
from precision_lab.analysis.search.families import Families
from precision_lab.analysis.search.greedy import greedy
from precision_lab.analysis.search.knapsack import Solution, least_bytes, least_error
from precision_lab.analysis.search.menu import Choice, Menu
from precision_lab.analysis.trials import outcomes
from precision_lab.cli.search_config import Prepared
from precision_lab.lab.recipes import Nodes
from precision_lab.lab.subject import Case
from precision_lab.lab.trials import Trial, Trials

UNLIMITED = "-"
_BISECTIONS = 5
"""Trials in which the smallest recipe within a drift is approached."""

_NOISY = 8
"""At one group of so many the noise of a trial is measured."""

Drifts = tuple[float, ...]


class Strategy(Protocol):
    """Asks for choices until it has none left, and takes the drift of each in every case."""

    def ask(self) -> list[Choice]: ...

    def tell(self, drifts: Sequence[Sequence[float]]) -> None: ...


@dataclass(frozen=True)
class Recipe:
    """A recipe to be tried on held-out cases, with its drift in those of the search.

    choice: None for one that is no choice of the search. predicted: relative L2 error, NaN where nothing predicts it.
    """

    name: str
    strategy: str
    budget: str
    trial: Trial
    choice: Choice | None
    drifts: Drifts
    predicted: float = math.nan


@dataclass
class Search:
    """What a search has to work with, and what it leaves: rows of its tables, recipes, and sentences.

    evaluations: of a strategy for each budget. seconds: a limit of `Menu.seconds`. families: makes the
    sampler of a budget, None without Optuna. found: by budget, the name of the recipe to take. noise_floor: relative,
    of the drift of a trial.
    """

    trials: Trials
    given: Prepared
    menu: Menu
    evaluations: int
    advance: Callable[[float, str], None]
    seconds: float | None = None
    families: Callable[[str, int], Families] | None = None
    gaps: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    final: list[Recipe] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    found: dict[str, str] = field(default_factory=dict)
    noise_floor: float = 0.0
    accepted: dict[str, list[Accepted]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._counted: set[tuple[str, Case]] = set()

    @property
    def predicts(self) -> bool:
        """Whether the menu has errors of a scan."""
        return self.menu.error(self.menu.smallest) > 0

    def compare(self, sizes: int) -> None:
        """Tries what recipes are compared with: the plain model, each candidate everywhere, and what is included.

        sizes: how many choices of the knapsack between the smallest and the largest size are tried, for the front.
        """
        self._take("plain", "plain", UNLIMITED, self.menu.stored)
        for candidate in self.menu.candidates[1:]:
            self._take(f"uniform_{candidate}", "uniform", UNLIMITED, self.menu.uniform(candidate))
        for name, trial in self.given.included.items():
            [drifts] = self._evaluate("included", UNLIMITED, [(trial, None)])
            self.final.append(Recipe(name, "included", UNLIMITED, trial, None, drifts))
        least, most = (self.menu.nbytes(choice) for choice in (self.menu.smallest, self.menu.stored))
        for number in range(sizes):
            limit = math.floor(least * (most / least) ** ((number + 1) / (sizes + 1)))
            solution = least_error(self.menu, limit, self.seconds)
            if solution is not None:
                name = f"knapsack_{self.menu.bits(self.menu.nbytes(solution.choice)):.2f}bits"
                self._take(name, "knapsack", UNLIMITED, solution.choice)

    def smallest_within(self, drift: float) -> Solution | None:
        """The smallest choice that is found to drift at most so much; None where even the plain model drifts more.

        What is predicted is scaled by what the trials before it measured.
        """
        budget = f"{drift:g}drift"
        [base] = map(_mean, self.try_choices("plain", budget, [self.menu.stored]))
        if not base <= drift:
            self.said.append(
                f"budget.drift={drift:g} cannot be met: the plain model itself drifts {base:.3g} in {self.given.dtype}"
            )
            return None
        best = Solution(self.menu.stored, float(self.menu.nbytes(self.menu.stored)), 0.0)
        factor, tried = 1.0, set[Choice]()
        for _ in range(_BISECTIONS):
            solution = least_bytes(self.menu, (drift**2 - base**2) / factor**2, self.seconds)
            if solution is None or solution.choice in tried:
                break
            tried.add(solution.choice)
            [measured] = map(_mean, self.try_choices("knapsack", budget, [solution.choice]))
            if measured <= drift and solution.value < best.value:
                best = solution
            predicted = math.sqrt(self.menu.error(solution.choice))
            if math.isfinite(measured) and predicted > 0 and measured > base:
                factor = math.sqrt(measured**2 - base**2) / predicted
            else:
                factor *= 2
        return best

    def within(self, budget: str, limit: int, solution: Solution) -> None:
        """Searches within a size, from the choice of the knapsack."""
        start = solution.choice
        self.gaps[budget] = solution.gap
        self._take(f"knapsack_{budget}", "knapsack", budget, start)
        by_greed = greedy(self.menu, limit)
        if by_greed is not None and self.seconds is None:
            self._take(f"greedy_{budget}", "greedy", budget, by_greed)
        self.noise_floor = max(self.noise_floor, self._noise(start))
        exchange = Exchange(self.menu, start, limit, self.evaluations, self.noise_floor, self.seconds)
        self._work(exchange, "exchange", budget)
        self.accepted[budget] = exchange.accepted
        name = f"search_{budget}"
        self._take(name, "exchange", budget, exchange.best, exchange.drifts)
        self.found[budget] = name

    def sampled(self, budget: str, limit: int, is_result: bool) -> None:
        """Lets Optuna search within a size. is_result: whether it is the strategy, and no comparison."""
        assert self.families is not None
        families = self.families(budget, limit)
        self._work(families, "optuna", budget)
        if families.best is None:
            self.said.append(f"Optuna proposed no recipe within {budget}")
            return
        name = f"search_{budget}" if is_result else f"optuna_{budget}"
        self._take(name, "optuna", budget, families.best, families.drifts)
        if is_result:
            self.found[budget] = name

    def judge(self, drift: float, needed: Solution | None) -> None:
        """Says which of the recipes found are not within a budget of drift, in the cases of the search.

        needed: the smallest choice that is.
        """
        size = "" if needed is None else f"; {self.menu.bits(self.menu.nbytes(needed.choice)):.3f} bits are enough"
        for budget, name in self.found.items():
            measured = next(_mean(recipe.drifts) for recipe in self.final if recipe.name == name)
            if not measured <= drift:
                self.said.append(
                    f"{budget} and budget.drift={drift:g} contradict each other: the least drift that was found within "
                    f"{budget} is {measured:.3g}{size}"
                )

    def check_held_out(self) -> pd.DataFrame:
        """Tries all recipes on held-out cases; returns the rows of both kinds of cases."""
        frames = []
        for held_out, cases in ((False, self.given.cases), (True, self.given.held_out)):
            pairs = [(recipe.trial, recipe.choice) for recipe in self.final]
            table = self._outcomes(pairs, cases)
            for recipe in self.final:
                own = table[table["trial"] == recipe.trial.key]
                about = {"recipe": recipe.name, "strategy": recipe.strategy, "budget": recipe.budget}
                frames.append(own.assign(**about, held_out=held_out, predicted=recipe.predicted))
        return pd.concat(frames, ignore_index=True)

    def choices(self) -> pd.DataFrame:
        """What each recipe has at every group."""
        return pd.DataFrame(
            [
                {"recipe": recipe.name, **place._asdict(), "candidate": option.candidate}
                for recipe in self.final
                if recipe.choice is not None
                for place, option in zip(self.menu.places, self.menu.of(recipe.choice), strict=True)
            ]
        ).rename(columns={"name": "group"})

    def nodes(self, choice: Choice, prefix: str = "") -> Nodes:
        """The techniques of a choice."""
        return self.given.recipes.nodes(self.menu.assigned(choice), prefix)

    def try_choices(self, strategy: str, budget: str, choices: Sequence[Choice]) -> list[Drifts]:
        """The drifts of choices in the cases of the search; NaN where one is not finite."""
        return self._evaluate(strategy, budget, [(self._trial(each, strategy), each) for each in choices])

    def _take(self, name: str, strategy: str, budget: str, choice: Choice, drifts: Drifts | None = None) -> None:
        """Keeps a choice as a recipe, and tries it first where its drifts are not known."""
        if drifts is None:
            [drifts] = self.try_choices(strategy, budget, [choice])
        trial = self._trial(choice, strategy)
        self.final.append(Recipe(name, strategy, budget, trial, choice, drifts, self._predicted(choice)))

    def _predicted(self, choice: Choice | None) -> float:
        """The predicted relative L2 error; NaN without sensitivities."""
        return math.nan if choice is None or not self.predicts else math.sqrt(self.menu.error(choice))

    def _work(self, strategy: Strategy, name: str, budget: str) -> None:
        while choices := strategy.ask():
            strategy.tell(self.try_choices(name, budget, choices))

    def _trial(self, choice: Choice, label: str) -> Trial:
        return Trial(self.given.dtype, self.nodes(choice), label)

    def _noise(self, choice: Choice) -> float:
        """How much the drift of a recipe changes, relatively, if some linears sum in another order."""
        spread = range(0, len(self.menu.places), max(1, len(self.menu.places) // _NOISY))
        freed = tuple(0 if at in spread else option for at, option in enumerate(choice))
        groups = [self.menu.places[at].name for at in spread]
        plain, twins = self._trial(freed, "noise"), []
        for rewrite in self.given.noise:
            extra = self.given.recipes.rewritten(rewrite, groups)
            if extra is not None:
                twins.append(Trial(self.given.dtype, {**plain.nodes, f"noise_{rewrite.name}": extra}, "noise"))
        if not twins:
            return 0.0
        before, *after = self._evaluate("noise", UNLIMITED, [(plain, freed), *((twin, freed) for twin in twins)])
        ratios = [
            mean_ratio([own], [plain_own]) for drifts in after for own, plain_own in zip(drifts, before, strict=True)
        ]
        return max((abs(math.log(ratio)) for ratio in ratios if math.isfinite(ratio)), default=0.0)

    def _evaluate(self, strategy: str, budget: str, pairs: Sequence[tuple[Trial, Choice | None]]) -> list[Drifts]:
        table = self._outcomes(pairs, self.given.cases)
        number = max(
            (row["number"] for row in self.rows if (row["strategy"], row["budget"]) == (strategy, budget)), default=0
        )
        drifts = []
        for at, (trial, choice) in enumerate(pairs):
            own = table[table["trial"] == trial.key]
            about = {"strategy": strategy, "budget": budget, "number": number + at + 1}
            about["predicted"] = self._predicted(choice)
            records = [{str(key): value for key, value in row.items()} for row in own.to_dict("records")]
            self.rows += [{**row, **about} for row in records]
            by_case = {(row["prompt_id"], row["seed"]): row["rel_l2"] for row in records}
            drifts.append(tuple(float(by_case.get((case.prompt_id, case.seed), math.nan)) for case in self.given.cases))
        return drifts

    def _outcomes(self, pairs: Sequence[tuple[Trial, Choice | None]], cases: Sequence[Case]) -> pd.DataFrame:
        """The outcomes of trials, with the bytes of the components that are searched."""
        trials = [trial for trial, _ in pairs]
        for trial in {trial.key: trial for trial in trials}.values():
            for case in cases:
                if (
                    self.trials.is_evaluated(trial, case) and (trial.key, case) not in self._counted
                ):  # by a killed search
                    self.advance(self.trials.bench.steps(case), trial.label)
                self._counted.add((trial.key, case))
        run = self.trials.evaluate(trials, cases)
        table = outcomes(run)
        sizes = {
            name: [entry.linear_weights[own] for own in self.given.recipes.components if own in entry.linear_weights]
            for name, entry in run.manifest.variants.items()
        }
        nbytes = {name: sum(each.bytes for each in own) for name, own in sizes.items()}
        number = {name: sum(each.number for each in own) for name, own in sizes.items()}
        table["bytes"] = table["trial"].map(nbytes)
        table["bits_per_weight"] = 8 * table["bytes"] / table["trial"].map(number).astype("float64")
        return table


def _mean(drifts: Drifts) -> float:
    """The geometric mean over cases; 0 if one is 0, and NaN if one is not finite."""
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(np.asarray(drifts)).mean()))
