"""The options of each group of sites: candidates with the bytes that they take and the error that is predicted.

The prediction is additive. If the errors that groups make in the output of the model are independent of each other,
their squares add up; `precision_lab.analysis.search.additivity` compares this with measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from precision_lab.errors import InputError, nearest

AS_STORED = "as_stored"
"""The option that leaves a group as it is: without error, and without a saving."""

Choice = tuple[int, ...]
"""The number of the option of each group."""


class Option(NamedTuple):
    """A candidate at a group.

    nbytes: that the weights of the group take with it. error: its share of the squared relative L2 error of the
    output. seconds: that a step takes longer than with the group as it is, NaN where not measured.
    """

    candidate: str
    nbytes: int
    error: float
    seconds: float = 0.0


class Place(NamedTuple):
    """A group: its name, the path of its sites inside their block, and the index of the block; None where unlike."""

    name: str
    operation: str | None = None
    block: int | None = None


@dataclass(frozen=True)
class Menu:
    """What a search may choose.

    options: of each place, at least one; that which leaves it as it is comes first. weights: number of linear weights
    of all components that the places are in. fixed: bytes of those of them that no choice changes.
    """

    places: tuple[Place, ...]
    options: tuple[tuple[Option, ...], ...]
    weights: int
    fixed: int = 0

    @cached_property
    def candidates(self) -> tuple[str, ...]:
        """All candidates, in the order in which groups offer them."""
        return tuple(dict.fromkeys(option.candidate for own in self.options for option in own))

    @cached_property
    def names(self) -> Mapping[str, int]:
        """The number of each place by its name."""
        return {place.name: at for at, place in enumerate(self.places)}

    @cached_property
    def frontiers(self) -> tuple[tuple[int, ...], ...]:
        """Of each place, the options that no other dominates in bytes and error, from the smallest to the largest."""
        return tuple(map(_frontier, self.options))

    @property
    def stored(self) -> Choice:
        """Every group as it is."""
        return (0,) * len(self.places)

    @property
    def smallest(self) -> Choice:
        """The option with the fewest bytes of every group; of several, that with the least error."""
        return tuple(frontier[0] for frontier in self.frontiers)

    def of(self, choice: Choice) -> list[Option]:
        """The chosen options."""
        return [own[at] for own, at in zip(self.options, choice, strict=True)]

    def nbytes(self, choice: Choice) -> int:
        """The bytes of all linear weights."""
        return self.fixed + sum(option.nbytes for option in self.of(choice))

    def error(self, choice: Choice) -> float:
        """The predicted squared relative L2 error of the output."""
        return math.fsum(option.error for option in self.of(choice))

    def seconds(self, choice: Choice) -> float:
        """The seconds that a step is predicted to take longer than with everything as it is; NaN if not measured."""
        return math.fsum(option.seconds for option in self.of(choice))

    def bits(self, nbytes: int) -> float:
        """Bits a weight, scales included."""
        return 8 * nbytes / self.weights

    def uniform(self, candidate: str) -> Choice:
        """One candidate wherever it fits. Raises InputError if no group offers it."""
        if candidate not in self.candidates:
            raise InputError(f"Unknown candidate {candidate!r}. {nearest(candidate, self.candidates)}")
        return tuple(
            next((at for at, option in enumerate(own) if option.candidate == candidate), 0) for own in self.options
        )

    def assigned(self, choice: Choice) -> dict[str, list[str]]:
        """The names of the groups that each candidate has, those left as they are apart."""
        found: dict[str, list[str]] = {name: [] for name in self.candidates if name != AS_STORED}
        for place, option in zip(self.places, self.of(choice), strict=True):
            if option.candidate != AS_STORED:
                found[option.candidate].append(place.name)
        return {name: groups for name, groups in found.items() if groups}


def menu_of(rows: pd.DataFrame, noise: pd.DataFrame, groups: pd.DataFrame, weights: int, fixed: int) -> Menu:
    """The menu that a scan of sensitivity describes.

    rows, noise, groups: its tables `sensitivity`, `sensitivity_noise` and `sensitivity_groups`. weights, fixed: see
    `Menu`. An option's error is the mean over cases and steps of `velocity_error` squared, minus the mean square that
    equivalent rewrites of its operation have: the error that rounding alone explains. An option with an error that is
    not finite is left out. Raises InputError where no option is left.
    """
    error = rows.assign(excess=rows["velocity_error"] ** 2 - _typical(rows, noise))
    pairs = error.groupby(["group", "candidate"], sort=False)
    excess = pairs["excess"].agg(lambda values: values.mean(skipna=False)).clip(lower=0.0)
    saved, seconds = pairs["bytes_saved"].first(), pairs["seconds_saved"].first()
    stored = groups.groupby("group", sort=False)["stored_bits"].sum() // 8
    options: dict[str, list[Option]] = {}
    for group, candidate, value, less, faster in zip(
        *zip(*excess.index, strict=True), excess, saved, seconds, strict=True
    ):
        own = options.setdefault(group, [Option(AS_STORED, int(stored[group]), 0.0)])
        if np.isfinite(value) and candidate != AS_STORED:
            late = -float(faster) if pd.notna(faster) else np.nan
            own.append(Option(candidate, int(stored[group] - less), float(value), late))
    if not any(len(own) > 1 for own in options.values()):
        raise InputError("The scan has no candidate with a finite error at any group, so there is nothing to choose")
    places = tuple(_places(rows))
    return Menu(places, tuple(map(tuple, options.values())), weights, fixed)


def _places(rows: pd.DataFrame) -> Iterator[Place]:
    """The groups of a scan, in its order. Operations of several components are told apart by the component."""
    about = rows.drop_duplicates("group")
    several = len(set(about["component"])) > 1
    for group, component, operation, block in about[["group", "component", "operation", "block"]].itertuples(
        index=False, name=None
    ):
        named = None if pd.isna(operation) else f"{component}:{operation}" if several else operation
        yield Place(group, named, None if pd.isna(block) else int(block))


def _typical(rows: pd.DataFrame, noise: pd.DataFrame) -> pd.Series:
    """For each row, the mean square of the error of equivalent rewrites of its operation in its case and step.

    That of all operations where its own has none; 0 without any.
    """
    if noise.empty:
        return pd.Series(0.0, rows.index)
    keys = ["prompt_id", "seed", "step"]
    squares = noise.assign(square=noise["velocity_error"] ** 2)
    own = squares.groupby([*keys, "operation"], dropna=False)["square"].mean().rename("own").reset_index()
    overall = squares.groupby(keys)["square"].mean().rename("overall").reset_index()
    found = rows[[*keys, "operation"]].merge(own, "left", [*keys, "operation"]).merge(overall, "left", keys)
    typical: pd.Series = found["own"].fillna(found["overall"]).fillna(0.0).set_axis(rows.index)
    return typical


def _frontier(options: Sequence[Option]) -> tuple[int, ...]:
    ordered = sorted(range(len(options)), key=lambda at: (options[at].nbytes, options[at].error, at))
    kept: list[int] = []
    for at in ordered:
        if not kept or options[at].error < options[kept[-1]].error:
            kept.append(at)
    return tuple(kept)


def columns(menu: Menu) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Bytes, errors and the number of the place of every option in turn, each of shape (options,)."""
    flat = [option for own in menu.options for option in own]
    sizes = np.array([option.nbytes for option in flat], dtype=np.int64)
    errors = np.array([option.error for option in flat], dtype=np.float64)
    return sizes, errors, np.repeat(np.arange(len(menu.places)), [len(own) for own in menu.options])
