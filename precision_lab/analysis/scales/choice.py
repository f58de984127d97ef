"""The smallest power-of-two scales with which recorded ranges fit in a format, by block.

The parameters of exact scalings are filled one after another. A parameter answers for the places that it divides and no
later one does; the scales that are already chosen count there. So the projections decide the scale of the attention's
input, and what this leaves of the output projection decides the scale of its input. Nothing is gained by a larger
scale: it moves small values towards the subnormal numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from precision_lab.analysis.scales.ranges import CASE, PLACE, without_containers
from precision_lab.errors import InputError
from precision_lab.numerics.formats import Format
from precision_lab.numerics.scales import Division, PerBlock, headroom_bits, scale_at, smallest_scale, table_of
from precision_lab.record.glob import named_sites
from precision_lab.record.layout import Layout

_BINDING = [*CASE, *PLACE, "stream", "branch", "step", "amax"]


@dataclass(frozen=True)
class Parameter:
    """A scale that a technique leaves open. places: patterns of the sites whose results it divides."""

    technique: str
    name: str
    places: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.technique}.{self.name}"


@dataclass(frozen=True)
class Goal:
    """What must fit. margin_bits: every magnitude is to be at most fmt.max * 2^-margin_bits."""

    fmt: Format
    margin_bits: float

    def __post_init__(self) -> None:
        largest = np.log2(self.fmt.max / self.fmt.smallest_normal)
        if not 0 <= self.margin_bits < largest:
            raise InputError(
                f"margin.bits is {self.margin_bits:g}, expected a number from 0 to {largest:.0f}, the bits between the "
                f"smallest normal and the largest number of {self.fmt.name}"
            )


@dataclass(frozen=True)
class Choice:
    """The scales of all parameters.

    scales: one row for each parameter and block: technique, parameter, block, `scale`; the place, case and moment that
    decided, `amax` there in the plain model, `divisor`, all scales together, `headroom_bits` with them, and
    `normal_bits`: log2 of the smallest rms at its places, divided, over the smallest normal number. If it is negative,
    typical values are subnormal.
    """

    goal: Goal
    parameters: tuple[Parameter, ...]
    scales: pd.DataFrame

    def tables(self) -> dict[str, dict[str, PerBlock]]:
        """By technique and parameter, the scales by block; no technique whose scales are all 1."""
        found: dict[str, dict[str, PerBlock]] = {}
        for parameter in self.parameters:
            own = self.scales[(self.scales["technique"] == parameter.technique)]
            if (own["scale"] != 1).any():
                mine = own[own["parameter"] == parameter.name].sort_values("block")
                if len(mine):
                    found.setdefault(parameter.technique, {})[parameter.name] = table_of(mine["scale"].tolist())
        return found

    @property
    def divisions(self) -> list[Division]:
        """What the chosen scales divide."""
        tables = self.tables()
        return [
            Division(tables[parameter.technique][parameter.name], parameter.places)
            for parameter in self.parameters
            if parameter.name in tables.get(parameter.technique, ())
        ]


def choose(ranges: pd.DataFrame, parameters: Sequence[Parameter], goal: Goal, layout: Layout) -> Choice:
    """The smallest scales, at least 1, with which every place of `ranges` fits; see the module.

    ranges: as `ranges_of` returns them. A parameter whose places the ranges do not have is left out. Raises InputError
    for ranges that are not finite, which no scale keeps in range, and for blocks of which nothing is known.
    """
    check_finite(ranges)
    ranges = _worst(ranges)
    parameters = [parameter for parameter in parameters if _divides(ranges, parameter.places, layout).any()]
    if not parameters:
        raise InputError(
            "No scale divides anything that was recorded: this model has none of the places of the techniques, "
            "or they were not recorded"
        )
    inside = ranges["block"].notna()
    blocks = ranges["block"].to_numpy(dtype=float, na_value=np.nan)
    divided = {parameter: _divides(ranges, parameter.places, layout) & inside for parameter in parameters}
    divisor = np.ones(len(ranges))
    rows: list[dict[str, object]] = []
    deciding: list[np.ndarray] = []
    for number, parameter in enumerate(parameters):
        own = divided[parameter].copy()
        for later in parameters[number + 1 :]:
            own &= ~divided[later]
        for block in _blocks(ranges, divided[parameter], parameter, layout):
            here = blocks == block
            mine = np.flatnonzero(own & here)
            scale, row = _decide(ranges, mine, divisor, goal)
            divisor[divided[parameter].to_numpy() & here] *= scale
            rows.append({"technique": parameter.technique, "parameter": parameter.name, "block": block, **row})
            deciding.append(mine)
    for row, mine in zip(rows, deciding, strict=True):
        row |= _described(ranges, mine, divisor, goal)
    return Choice(goal, tuple(parameters), pd.DataFrame(rows))


def divisors(places: pd.DataFrame, divisions: Sequence[Division], layout: Layout) -> np.ndarray:
    """The product of the scales at each row of `places`, which has component, site and block; float64 (rows,)."""
    product = np.ones(len(places))
    for division in divisions:
        named = _divides(places, division.places, layout)
        blocks = places["block"].to_numpy(dtype=float, na_value=-1)
        for block in np.unique(blocks[named]):
            scale = scale_at(division.by, None if block < 0 else int(block), ", ".join(division.places))
            product[named.to_numpy() & (blocks == block)] *= scale
    return product


def beyond(
    ranges: pd.DataFrame,
    divisions: Sequence[Division],
    widened: Sequence[str],
    goal: Goal,
    layout: Layout,
) -> pd.DataFrame:
    """The places that do not fit with these divisions and that `widened` patterns do not name, the worst first.

    One row a place, at its largest magnitude: the columns of `ranges`, `divisor` and `headroom_bits`. Containers are
    left out where what is inside was recorded.
    """
    rows = without_containers(ranges)
    rows = rows[~_divides(rows, tuple(widened), layout)] if widened else rows
    product = divisors(rows, divisions, layout)
    rows = rows.assign(divisor=product, headroom_bits=headroom_bits(rows["amax"] / product, goal.fmt))
    rows = rows[rows["headroom_bits"] < goal.margin_bits]
    rows = rows.sort_values(["headroom_bits", "order"], kind="stable")
    return rows.drop_duplicates(PLACE, ignore_index=True)


def _worst(ranges: pd.DataFrame) -> pd.DataFrame:
    """The row with the largest magnitude of each place, and the smallest rms there, over all cases and variants."""
    grouped = ranges.groupby(PLACE, sort=False)
    rows = ranges.loc[grouped["amax"].idxmax()].drop(columns="rms")
    return rows.merge(grouped["rms"].min().reset_index(), on=PLACE).reset_index(drop=True)


def check_finite(ranges: pd.DataFrame) -> None:
    """Raises InputError for ranges of values that were not finite, which no scale keeps in range."""
    bad = ranges[~np.isfinite(ranges["amax"])]
    if len(bad):
        row = bad.iloc[0]
        raise InputError(
            f"{row['component']}:{row['site']} is not finite in {row['variant']}, set {row['set']}, prompt "
            f"{row['prompt_id']}, seed {row['seed']}: no scale keeps that in range. Expected ranges of a finite model"
        )


def _divides(places: pd.DataFrame, patterns: tuple[str, ...], layout: Layout) -> pd.Series:
    """Whether the patterns name the site of each row."""
    index = pd.MultiIndex.from_frame(places[["component", "site"]])
    return pd.Series(index.isin(named_sites(patterns, index.unique(), layout.default)), index=places.index)


def _blocks(ranges: pd.DataFrame, divided: pd.Series, parameter: Parameter, layout: Layout) -> range:
    """The blocks of a model. Raises InputError for one in which nothing was recorded that the parameter divides."""
    known = set(ranges.loc[divided, "block"].astype(int))
    blocks = range(layout.depth or max(known, default=-1) + 1)
    unknown = sorted(set(blocks) - known)
    if unknown:
        raise InputError(
            f"{parameter}: nothing that it divides was recorded in {len(unknown)} of {len(blocks)} blocks, first in "
            f"block {unknown[0]}, expected {', '.join(parameter.places)}"
        )
    return blocks


def _decide(ranges: pd.DataFrame, mine: np.ndarray, divisor: np.ndarray, goal: Goal) -> tuple[float, dict[str, object]]:
    """The scale that the rows `mine` need, and the place and moment that decided."""
    if not len(mine):
        return 1.0, {"scale": 1.0}
    divided = ranges["amax"].to_numpy()[mine] / divisor[mine]
    worst = mine[int(np.argmax(divided))]
    scale = float(smallest_scale(divided.max(), goal.fmt, goal.margin_bits))
    return scale, {"scale": scale, **ranges.iloc[worst][_BINDING].to_dict()}


def _described(ranges: pd.DataFrame, mine: np.ndarray, divisor: np.ndarray, goal: Goal) -> dict[str, float]:
    """Headroom at the largest magnitude of the rows `mine` with all scales, and how far typical values are normal."""
    if not len(mine):
        return {"divisor": 1.0, "headroom_bits": np.inf, "normal_bits": np.inf}
    amax = ranges["amax"].to_numpy()[mine] / divisor[mine]
    rms = ranges["rms"].to_numpy(dtype=float)[mine] / divisor[mine]
    least = np.nanmin(rms) if np.isfinite(rms).any() else np.inf
    return {
        "divisor": float(divisor[mine[int(np.argmax(amax))]]),
        "headroom_bits": float(headroom_bits(amax.max(), goal.fmt)),
        "normal_bits": float(np.log2(least / goal.fmt.smallest_normal)),
    }
