"""Local exchange: groups swap their candidates at equal bytes, and what lowers the measured drift is kept.

A knapsack is as good as the additive model that it rests on. Where errors reinforce or cancel each other, trials of
whole recipes show it. One group in hundreds is below the noise of a trial, so whole clusters are moved first, an
operation in all blocks, and then ever smaller ranges of blocks (a pattern search: Torczon 1997,
doi:10.1137/S1052623493250780).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from precision_lab.analysis.search.clusters import Cluster, label, levels
from precision_lab.analysis.search.menu import Choice, Menu, Option

BATCH = 4
"""How many choices are asked for at once, whatever the number of workers, so that this decides nothing."""

LEAST_GAIN = 0.01
"""The least relative gain of a swap that is kept: a smaller one in a few cases says little of others."""

_CONSIDERED = 12
"""The clusters to raise, and those to lower, of which all pairs are built."""


@dataclass(frozen=True)
class Move:
    """A swap: the choice after it, what was raised and lowered, and the predicted change of the squared error."""

    choice: Choice
    raised: Cluster
    lowered: Cluster
    predicted: float


@dataclass(frozen=True)
class Accepted:
    """A swap that was kept. ratio: the drift after it, relative to that before, the geometric mean over cases."""

    raised: str
    lowered: str
    ratio: float


@dataclass
class Exchange:
    """Ask and tell: `ask` returns choices to try, `tell` takes their drifts, until `ask` returns none.

    start: where it begins. limit: bytes that no choice exceeds. evaluations: the most choices that are tried, the start
    included. noise: relative change of the drift that means nothing. seconds: a limit of `Menu.seconds`, or None.
    `best` is the last choice kept, and `drifts` its drift in each case.

    A swap is kept if it lowers the drift in every case, and its geometric mean over cases beyond the noise and
    `LEAST_GAIN`: what helps one prompt and harms another would not last. Swaps are tried in the order of what they are
    predicted to cost, and every cluster once before any twice. What the trials of a cluster showed beyond the
    prediction counts in the order of the later ones.
    """

    menu: Menu
    start: Choice
    limit: int
    evaluations: int
    noise: float
    seconds: float | None = None
    best: Choice = field(init=False)
    drifts: tuple[float, ...] = field(init=False, default=())
    accepted: list[Accepted] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.best = self.start
        self._asked: list[Move] = []
        self._seen = {self.start}
        self._left = self.evaluations
        self._levels = levels(self.menu)
        self._uses: Counter[tuple[bool, Cluster]] = Counter()
        self._surprises: dict[tuple[bool, Cluster], list[float]] = {}
        self._of_level = 0

    def ask(self) -> list[Choice]:
        """The next choices to try; none when the evaluations or the swaps are used up."""
        assert not self._asked, "tell the drifts of the choices first"
        if not self.drifts:
            self._left -= 1
            self._asked = [Move(self.start, (), (), 0.0)]
            return [self.start]
        while self._levels and self._left > 0:
            self._of_level = self._of_level or self._share()
            self._asked = self._moves(min(BATCH, self._left, self._of_level))
            if self._asked:
                self._left -= len(self._asked)
                self._of_level -= len(self._asked)
                if self._of_level == 0:
                    self._levels.pop(0)
                break
            self._levels.pop(0)
            self._of_level = 0
        return [move.choice for move in self._asked]

    def tell(self, drifts: Sequence[Sequence[float]]) -> None:
        """The drift of each choice asked for, in every case; NaN where it was not finite."""
        asked, self._asked = self._asked, []
        if not self.drifts:
            self.drifts = tuple(drifts[0])
            return
        before, unit = self.drifts, self._unit()
        ratios = [mean_ratio(own, before) for own in drifts]
        better = [
            ratio < 1 - max(self.noise, LEAST_GAIN) and all(new < old for new, old in zip(own, before, strict=True))
            for ratio, own in zip(ratios, drifts, strict=True)
        ]
        for move, ratio in zip(asked, ratios, strict=True):
            change = (ratio**2 - 1) * unit if math.isfinite(ratio) else unit
            for key in ((True, move.raised), (False, move.lowered)):
                self._surprises.setdefault(key, []).append((change - move.predicted) / 2)
        if any(better):
            least = int(np.argmin([ratio if is_so else math.inf for ratio, is_so in zip(ratios, better, strict=True)]))
            kept = asked[least]
            up, down = (label([self.menu.places[at] for at in part]) for part in (kept.raised, kept.lowered))
            self.accepted.append(Accepted(up, down, ratios[least]))
            self.best, self.drifts = kept.choice, tuple(drifts[least])

    def _share(self) -> int:
        """How many trials the present level may have: half of those left, all on the last."""
        return self._left if len(self._levels) == 1 else max(min(BATCH, self._left), self._left // 2)

    def _unit(self) -> float:
        """The squared error that the drift stands for: that predicted of the present choice."""
        return self.menu.error(self.best) or 1.0

    def _moves(self, count: int) -> list[Move]:
        clusters = self._levels[0]
        raising = self._first([(self._raised(cluster), cluster) for cluster in clusters], True)
        lowering = self._first([(self._lowered(cluster), cluster) for cluster in clusters], False)
        pairs = [(up, down) for up, down in product(raising, lowering) if up != down]
        moves = [move for up, down in pairs if (move := self._swap(up, down)) and move.choice not in self._seen]
        chosen: list[Move] = []
        while moves and len(chosen) < count:
            best = min(moves, key=self._rank)
            chosen.append(best)
            self._seen.add(best.choice)
            self._uses[True, best.raised] += 1
            self._uses[False, best.lowered] += 1
            moves = [move for move in moves if move.choice not in self._seen]
        return chosen

    def _rank(self, move: Move) -> tuple[int, float]:
        up, down = (True, move.raised), (False, move.lowered)
        used = min(self._uses[up], 1) + min(self._uses[down], 1)
        return used, move.predicted + self._surprise(up) + self._surprise(down)

    def _surprise(self, key: tuple[bool, Cluster]) -> float:
        found = self._surprises.get(key)
        return sum(found) / len(found) if found else 0.0

    def _first(self, values: Sequence[tuple[float, Cluster]], up: bool) -> list[Cluster]:
        """The clusters that can move, those tried least first, then by the predicted change a byte and surprises."""
        able = [(value, cluster) for value, cluster in values if math.isfinite(value)]
        able.sort(key=lambda each: (min(self._uses[up, each[1]], 1), each[0] + self._surprise((up, each[1])), each[1]))
        return [cluster for _, cluster in able[:_CONSIDERED]]

    def _raised(self, cluster: Cluster) -> float:
        """The predicted change of the squared error with every group of a cluster raised; infinite if none can be."""
        changes = [step[1].error - step[0].error for at in cluster if (step := self._step(self.best, at, 1))]
        return sum(changes) if changes else math.inf

    def _lowered(self, cluster: Cluster) -> float:
        changes = [step[1].error - step[0].error for at in cluster if (step := self._step(self.best, at, -1))]
        return sum(changes) if changes else math.inf

    def _step(self, choice: Choice, at: int, by: int) -> tuple[Option, Option, int] | None:
        """The option of a group, the next one above or below it in bytes, and its number; None at the end."""
        options, frontier = self.menu.options[at], self.menu.frontiers[at]
        present = options[choice[at]]
        beyond = [each for each in frontier if (options[each].nbytes - present.nbytes) * by > 0]
        if not beyond:
            return None
        number = beyond[0] if by > 0 else beyond[-1]
        return present, options[number], number

    def _swap(self, up: Cluster, down: Cluster) -> Move | None:
        """Raises as many groups of `up` as lowering groups of `down` pays for, the best ones first."""
        steps_up = [(at, step) for at in up if (step := self._step(self.best, at, 1))]
        steps_down = [(at, step) for at in down if (step := self._step(self.best, at, -1))]
        steps_up.sort(key=lambda each: (_slope(each[1]), each[0]))
        steps_down.sort(key=lambda each: (_slope(each[1]), each[0]))
        payable = self.limit - self.menu.nbytes(self.best) + sum(_paid(step) for _, step in steps_down)
        choice, needed, predicted = list(self.best), 0, 0.0
        raised = lowered = 0
        for at, step in steps_up:
            if needed - _paid(step) <= payable:
                needed -= _paid(step)
                choice[at], predicted, raised = step[2], predicted + step[1].error - step[0].error, raised + 1
        needed -= self.limit - self.menu.nbytes(self.best)
        for at, step in steps_down:
            if needed <= 0:
                break
            needed -= _paid(step)
            choice[at], predicted, lowered = step[2], predicted + step[1].error - step[0].error, lowered + 1
        late = self.seconds is not None and not self.menu.seconds(tuple(choice)) <= self.seconds
        if not raised or not lowered or late:
            return None
        return Move(tuple(choice), up, down, predicted)


def mean_ratio(drifts: Sequence[float], before: Sequence[float]) -> float:
    """The geometric mean over cases of the ratio of drifts; NaN if one is not positive and finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.asarray(drifts, dtype=np.float64) / np.asarray(before, dtype=np.float64))
    return float(np.exp(logs.mean())) if np.isfinite(logs).all() else math.nan


def _paid(step: tuple[Option, Option, int]) -> int:
    """The bytes that a step saves."""
    return step[0].nbytes - step[1].nbytes


def _slope(step: tuple[Option, Option, int]) -> float:
    """The change of the error for each byte that the size changes."""
    return (step[1].error - step[0].error) / abs(_paid(step))
