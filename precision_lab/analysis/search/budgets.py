"""What a recipe may cost: gigabytes, bits a weight, drift or seconds, and what can be met of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from precision_lab.analysis.search.knapsack import Solution, least_error
from precision_lab.analysis.search.menu import Menu
from precision_lab.errors import InputError

GIGA = 10**9


@dataclass(frozen=True)
class Budget:
    """The budget of a search, as it was given: several sizes give a recipe each.

    gb: gigabytes (1e9 bytes) of the linear weights with their scales. bits: their bits a weight. drift: relative L2
    drift of the result, the geometric mean over cases. latency: share of the time of the plain model's step.
    """

    gb: Sequence[float] = ()
    bits: Sequence[float] = ()
    drift: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        if not self.gb and not self.bits and self.drift is None and self.latency is None:
            raise InputError(
                "The budget is empty, expected budget.gb=, budget.bits=, budget.drift= or budget.latency=, "
                "such as budget.bits=5"
            )
        if self.gb and self.bits:
            raise InputError(
                f"budget.gb={_listed(self.gb)} and budget.bits={_listed(self.bits)} both limit the size; expected one"
            )
        for name in ("gb", "bits"):
            sizes = getattr(self, name)
            for size in sizes:
                _check(name, size)
            if len(set(sizes)) < len(sizes):
                raise InputError(f"budget.{name}={_listed(sizes)}, expected each size once")
        for name in ("drift", "latency"):
            if getattr(self, name) is not None:
                _check(name, getattr(self, name))

    def sizes(self, menu: Menu) -> dict[str, int]:
        """The limits of bytes by their names, such as `5bits`; those of an unlimited size are empty.

        Raises InputError for a size that no choice is within, with the smallest one, and for one that the weights have
        as they are stored.
        """
        limits = {_name(gb, "gb"): math.floor(gb * GIGA) for gb in self.gb}
        limits |= {_name(bits, "bits"): math.floor(bits * menu.weights / 8) for bits in self.bits}
        least, most = menu.nbytes(menu.smallest), menu.nbytes(menu.stored)
        for given, limit in zip((*self.gb, *self.bits), limits.values(), strict=True):
            kind = "gb" if self.gb else "bits"
            if limit >= most:
                stored = most / GIGA if self.gb else menu.bits(most)
                raise InputError(
                    f"budget.{kind}={given:g} leaves nothing to search: the weights have {stored:.4g} as stored"
                )
            if limit < least:
                nearest = _above(least / GIGA if self.gb else menu.bits(least))
                raise InputError(
                    f"budget.{kind}={given:g} cannot be met: with {', '.join(menu.candidates)} the smallest is "
                    f"{kind}={nearest}. A candidate of fewer bits makes it smaller"
                )
        return limits

    def check_times(self, menu: Menu) -> None:
        """Raises InputError if a latency is limited, and no time of any candidate was measured."""
        timed = any(not math.isnan(option.seconds) for own in menu.options for option in own[1:])
        if self.latency is not None and not timed:
            raise InputError(
                "budget.latency needs measured times, which this scan does not have: run the scan with scan.rounds=5"
            )

    def seconds(self, menu: Menu, step: float) -> float | None:
        """The limit of `Menu.seconds` in seconds, for a step of the plain model of `step` seconds; None without one.

        Raises InputError where no time was measured, or no choice is as fast.
        """
        if self.latency is None:
            return None
        self.check_times(menu)
        limit = (self.latency - 1) * step
        fastest = sum(min(o.seconds for o in own if not math.isnan(o.seconds)) for own in menu.options)
        if fastest > limit:
            raise InputError(
                f"budget.latency={self.latency:g} cannot be met: the fastest choice is predicted to take "
                f"{_above(1 + fastest / step)} of the plain model's step"
            )
        return limit


def smallest_drift(menu: Menu, limit: int | None, seconds: float | None) -> Solution:
    """The choice with the least predicted error within a size and a time. Raises InputError where none is in both."""
    found = least_error(menu, limit, seconds)
    if found is None:
        raise InputError(
            "budget: its size and budget.latency contradict each other, since no choice is predicted to be within "
            "both; expected a larger size, or a larger latency"
        )
    return found


def _check(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"budget.{name}={value:g}, expected a number above 0")


def _name(size: float, unit: str) -> str:
    return f"{size:.12g}{unit}"


def _listed(values: Sequence[float]) -> str:
    return f"[{','.join(f'{value:g}' for value in values)}]"


def _above(value: float) -> str:
    """A number in four digits that is at least `value`, so that it can be given as a budget."""
    digits = 3 - math.floor(math.log10(value))
    return f"{math.ceil(value * 10**digits - 1e-9) / 10**digits:.{max(digits, 0)}f}"
