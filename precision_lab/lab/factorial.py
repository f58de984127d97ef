"""Factorial experiments: every combination of several factors, or a regular fraction of them, as ordinary variants.

A factor is one technique, or several that belong together, and is on or off. The variant `baseline+a+b` is `baseline`
with the factors a and b on, so in every table its name gives its place in the design (Box, Hunter and Hunter,
Statistics for Experimenters, 2005, chapters 5 and 6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TypeVar

from precision_lab.errors import InputError, nearest

SEPARATOR = "+"
MOST = 64

T = TypeVar("T")


def label(base: str, on: Sequence[str]) -> str:
    """The name of the variant that is `base` with the factors `on`; `base` itself without factors."""
    return SEPARATOR.join((base, *on))


def treatments(factors: Sequence[str], generators: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """The factors that are on in each run of a 2^(k-p) design of k factors, p of them with a generator.

    The first run has no factor on. generators: maps a factor to factors without a generator; it is on if an odd number
    of them is. In signs (on +1, off -1), that is minus the product of two factors, or plus the product of three.
    Raises InputError for unknown or unsuitable names, fewer than two factors, or more than 64 runs.
    """
    if len(factors) < 2:
        raise InputError(f"factorial.factors is {list(factors)}, expected at least two techniques")
    for name in factors:
        if SEPARATOR in name:
            raise InputError(f"factorial.factors: {name!r} has a {SEPARATOR!r}, which joins the names of factors")
    free = [name for name in factors if name not in generators]
    for name, sources in generators.items():
        if name not in factors:
            raise InputError(f"factorial.generators: unknown factor {name!r}. {nearest(name, factors)}")
        if len(set(sources)) != len(sources) or len(sources) < 2:
            raise InputError(f"factorial.generators.{name} is {list(sources)}, expected two different factors or more")
        for source in sources:
            if source not in free:
                raise InputError(
                    f"factorial.generators.{name}: {source!r} is no factor without a generator. {nearest(source, free)}"
                )
    if 2 ** len(free) > MOST:
        raise InputError(
            f"factorial: {len(free)} free factors make {2 ** len(free)} runs, expected at most {MOST}. "
            "Give some of them factorial.generators"
        )
    runs = []
    for levels in product((False, True), repeat=len(free)):
        on = dict(zip(free, reversed(levels), strict=True))  # the first factor changes fastest, as Yates wrote it
        on |= {name: sum(on[source] for source in sources) % 2 == 1 for name, sources in generators.items()}
        runs.append(tuple(name for name in factors if on[name]))
    return runs


def combined(techniques: Mapping[str, T], factors: Mapping[str, Mapping[str, T]], on: Sequence[str]) -> dict[str, T]:
    """The techniques of a run: those of the base, then those of its factors. Raises InputError if one occurs twice."""
    together = dict(techniques)
    for factor in on:
        for name, technique in factors[factor].items():
            if name in together:
                raise InputError(
                    f"factorial: technique {name} of factor {factor} is also in the base or another factor"
                )
            together[name] = technique
    return together
