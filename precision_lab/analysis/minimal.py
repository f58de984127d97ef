"""A minimal set of names for which a criterion holds, found by asking whether it holds for sets.

QuickXplain (Junker 2004, Preferred explanations and relaxations for over-constrained problems, AAAI) divides the names
and conquers the halves. For k names out of n and a monotone criterion, one that keeps holding when names are added, it
needs about 2k log2(n/k) + 2k runs; `most_runs` bounds them with those that show that each name is needed. Delta
debugging (Zeller and Hildebrandt 2002, Simplifying and isolating failure-inducing input, IEEE TSE 28) needs up to
n^2 + 3n, but it needs no monotone criterion: its result is 1-minimal, so that no single name can be left out. It is the
fallback, and starts at the smallest set that was seen to hold.

Whether a criterion is monotone cannot be known from a few runs, but it can be refuted. Any pair of sets that were run,
of which the smaller holds and the larger does not, is a violation. After the search, `checks` random sets that contain
the result and as many of its subsets without two of its names are run for this purpose, and for each name of the result
everything but that name: where none of those holds, the result is the only minimal set. Where one holds, that
name can be left out if others stand in for it, and halving the others finds a single one, unless several together in
the first half that will do hide it.

Where the criterion is not monotone, a set without two of its names can hold although no set without one of them does.
Then the subsets of the result are run too, the largest first, as far as `subsets` runs allow, which is all of them up
to six names.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

Names = frozenset[str]
Asking = Generator[Sequence[Names], None, list[str]]
"""Yields sets whose results are needed, and returns names."""

Status = Literal["found", "nothing", "impossible"]


@dataclass(frozen=True)
class Minimal:
    """The result of a search.

    status: found; nothing, if the criterion holds for the empty set; impossible, if it does not hold for all names.
    names: in the order of all names; discovered: in the order in which they were found. runs: of the search, with those
    that show that each name is needed. checks: further runs, which tested whether the criterion is monotone, whether
    this is the only minimal set, and subsets of it. violations: pairs of sets of which the smaller holds and the larger
    does not. fallback: whether delta debugging found the names. left_out: no subset holds that lacks up to this many of
    the names; all of them were run. is_only: whether no minimal set without one of the names exists, if the criterion
    is monotone; None if not checked. instead: for each name that can be left out when everything else is there, a name
    that can replace it in the set, or None if no single one was found to do so.
    """

    status: Status
    names: tuple[str, ...] = ()
    discovered: tuple[str, ...] = ()
    runs: int = 0
    checks: int = 0
    violations: tuple[tuple[Names, Names], ...] = ()
    fallback: bool = False
    left_out: int = 0
    is_only: bool | None = None
    instead: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def is_minimal(self) -> bool:
        """Whether no proper subset will do, as far as the runs can tell; else no single name can be left out."""
        is_shown = self.left_out >= len(self.names)
        return self.status == "found" and (is_shown or (not self.violations and not self.fallback))


def most_runs(number: int, found: int) -> int:
    """The most runs of a search for `found` of `number` names under a monotone criterion, without the checks of it."""
    return 2 * found * math.ceil(math.log2(max(number, 1))) + 2 * found + 2


class MinimalSet:
    """Asks for the results of sets, one batch of independent ones at a time, until `result` is there.

    names: all, ordered so that neighbours are alike. checks: how many random sets test monotonicity from either side;
    0 checks nothing beyond the pairs that the search runs anyway, nor whether the result is the only minimal set.
    subsets: the most runs of subsets of the result where the criterion is not monotone, beside those that show that
    each name of a smaller set found by them is needed.
    """

    def __init__(self, names: Sequence[str], checks: int = 4, subsets: int = 64, seed: int = 0):
        if len(set(names)) != len(names) or not names:
            raise ValueError(
                f"{len(names)} names, of which {len(set(names))} differ; expected distinct ones, at least one"
            )
        self.names = tuple(names)
        self.holds: dict[Names, bool] = {}
        """The results so far by set, in the order in which they were told."""
        self.result: Minimal | None = None
        self._checks, self._subsets, self._random = checks, subsets, random.Random(seed)
        self._runs = 0
        self._searching = self._search()
        self._wanted: list[Names] = []
        self._advance()

    def ask(self) -> list[Names]:
        """The sets whose results are needed next, independent of each other; none once there is a result."""
        return list(self._wanted)

    def tell(self, results: Mapping[Names, bool]) -> None:
        """Takes results; all that were asked for let the search go on."""
        for names in results:
            if names - set(self.names):
                raise ValueError(f"{sorted(names - set(self.names))[0]} is none of the names")
        self.holds.update(results)
        self._wanted = [names for names in self._wanted if names not in self.holds]
        if not self._wanted and self.result is None:
            self._advance()

    def _advance(self) -> None:
        while not self._wanted and self.result is None:
            try:
                asked = next(self._searching)
            except StopIteration as ended:
                self.result = ended.value
                return
            self._wanted = [names for names in dict.fromkeys(asked) if names not in self.holds]

    def _search(self) -> Generator[Sequence[Names], None, Minimal]:
        nothing, everything = Names(), Names(self.names)
        yield [nothing, everything]
        if self.holds[nothing]:
            return Minimal("nothing", runs=len(self.holds), violations=self._violations())
        if not self.holds[everything]:
            return Minimal("impossible", runs=len(self.holds))
        found = yield from self._explained([], [], list(self.names))
        yield [Names(found)]
        yield _without_each(found)
        fallback = not self.holds[Names(found)] or any(self.holds[names] for names in _without_each(found))
        if fallback:
            found = yield from self._reduced(len(found) if self.holds[Names(found)] else 2)
        runs = len(self.holds)
        yield from self._check(found)
        if fallback or self._violations():
            found = yield from self._thinned(found)
        instead = (yield from self._replaced(found)) if self._checks else {}
        return Minimal(
            "found",
            tuple(self._ordered(found)),
            tuple(found),
            runs,
            len(self.holds) - runs,
            self._violations(),
            fallback,
            self._left_out(found),
            not instead if self._checks else None,
            instead,
        )

    def _explained(self, background: list[str], added: list[str], candidates: list[str]) -> Asking:
        """The candidates that are needed beside the background, the last part of which is `added`."""
        if added:
            yield [Names(background)]
            if self.holds[Names(background)]:
                return []
        if len(candidates) == 1:
            return candidates
        half = len(candidates) // 2
        first, second = candidates[:half], candidates[half:]
        of_second = yield from self._explained(background + first, first, second)
        of_first = yield from self._explained(background + of_second, of_second, first)
        return of_second + of_first

    def _reduced(self, parts: int) -> Asking:
        """1-minimal names for which the criterion holds, by delta debugging of the smallest set that was seen to hold.

        parts: into how many pieces it is cut at first, of which one at a time is left out.
        """
        holding = [names for names, holds in self.holds.items() if holds]
        names = min(map(self._ordered, holding), key=lambda names: (len(names), names))
        while len(names) > 1:
            size = math.ceil(len(names) / min(parts, len(names)))
            for start in range(0, len(names), size):
                rest = names[:start] + names[start + size :]
                yield [Names(rest)]
                if self.holds[Names(rest)]:
                    names, parts = rest, max(parts - 1, 2)
                    break
            else:
                if size == 1:
                    break
                parts = 2 * parts
        return names

    def _check(self, found: Sequence[str]) -> Generator[Sequence[Names], None, None]:
        """Runs the checks of monotonicity, and everything without each of the names that were found."""
        if not self._checks:
            return
        others = [name for name in self.names if name not in found]
        asked = [Names(found) | self._half(others) for _ in range(self._checks)]
        without_two = [Names(kept) for kept in combinations(found, max(len(found) - 2, 0))]
        asked += self._random.sample(without_two, min(self._checks, len(without_two)))
        yield asked + [Names(self.names) - {name} for name in found]

    def _thinned(self, found: list[str]) -> Asking:
        """The names without those that can be left out together, as far as the runs of subsets allow."""
        allowed, left_out = self._subsets, 1
        while left_out < len(found):
            subsets = [Names(kept) for kept in combinations(found, len(found) - left_out - 1)]
            new = sum(subset not in self.holds for subset in subsets)
            if new > allowed and left_out:
                break
            allowed -= new
            yield subsets
            smaller = next((subset for subset in subsets if self.holds[subset]), None)
            if smaller is None:
                left_out += 1
            else:
                found, left_out = [name for name in found if name in smaller], 0
        return found

    def _left_out(self, found: Sequence[str]) -> int:
        """`Minimal.left_out`."""
        count = 0
        while count < len(found) and all(
            not self.holds.get(Names(kept), True) for kept in combinations(found, len(found) - count - 1)
        ):
            count += 1
        return count

    def _replaced(self, found: Sequence[str]) -> Generator[Sequence[Names], None, dict[str, str | None]]:
        """`Minimal.instead`, with at most 2 ceil(log2 n) runs for each of its names."""
        instead: dict[str, str | None] = {}
        for name in found:
            if not self.holds.get(Names(self.names) - {name}, False):
                continue
            base = Names(found) - {name}
            others = [other for other in self.names if other not in found]
            while len(others) > 1:
                half = len(others) // 2
                for part in (others[:half], others[half:]):
                    yield [base | Names(part)]
                    if self.holds[base | Names(part)]:
                        others = part
                        break
                else:
                    others = []
            instead[name] = others[0] if others else None
        return instead

    def _half(self, names: Sequence[str]) -> Names:
        return Names(name for name in names if self._random.random() < 0.5)

    def _ordered(self, names: Iterable[str]) -> list[str]:
        chosen = set(names)
        return [name for name in self.names if name in chosen]

    def _violations(self) -> tuple[tuple[Names, Names], ...]:
        holding = [names for names, holds in self.holds.items() if holds]
        failing = [names for names, holds in self.holds.items() if not holds]
        return tuple((small, large) for small in holding for large in failing if small < large)


def _without_each(names: Sequence[str]) -> list[Names]:
    return [Names(names) - {name} for name in names]
