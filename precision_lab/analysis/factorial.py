"""Main effects and interactions of a factorial experiment, from its tables alone.

The names of the variants list the factors that are on (`precision_lab.lab.factorial`). An effect is a contrast of the
logarithm of the drift, within each prompt and seed: the mean over the runs in which the product of the factors' signs
is +1 (on +1, off -1) less the mean over the others (Box, Hunter and Hunter 2005, chapter 5). Exponentiated it is a
ratio: 0.5 halves the drift (-6 dB), and for an interaction 1 means that the factors act independently.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from precision_lab.analysis.claims import Claim
from precision_lab.analysis.decision import decide
from precision_lab.analysis.measures import final_drift
from precision_lab.analysis.ratios import PROMPT, noise_floor, over_units, unit_of
from precision_lab.lab.factorial import SEPARATOR
from precision_lab.record.files import number_or_reason
from precision_lab.record.run import Run

HIGHEST_ORDER = 3
"""Interactions of more factors than this are not estimated: they are rare and hard to interpret."""

_FINDINGS = {"smaller": "less drift", "larger": "more drift", "equal": "none above the noise"}


@dataclass(frozen=True)
class Design:
    """The runs of one factorial: variant -> the factors that are on."""

    base: str
    factors: tuple[str, ...]
    runs: Mapping[str, frozenset[str]]

    def signs(self, factors: Sequence[str]) -> npt.NDArray[np.int64]:
        """The column of an effect, (runs,): the product of the factors' signs."""
        return np.array([math.prod(1 if name in on else -1 for name in factors) for on in self.runs.values()])

    @property
    def balanced(self) -> bool:
        """Whether main effects are orthogonal to each other and to the mean: a full factorial or a regular fraction."""
        columns = np.stack([np.ones(len(self.runs), int), *(self.signs([name]) for name in self.factors)])
        return bool(np.array_equal(columns @ columns.T, len(self.runs) * np.eye(len(columns), dtype=int)))


@dataclass(frozen=True)
class Effect:
    """One contrast as a ratio of drifts, with its 95 % interval over prompts.

    aliases: effects that this design cannot distinguish from it; a leading minus marks the opposite sign. finding: in
    words, by the interval and the noise floor.
    """

    factors: tuple[str, ...]
    aliases: tuple[str, ...]
    ratio: float
    lo: float
    hi: float
    finding: str


def designs(variants: Iterable[str]) -> list[Design]:
    """The factorials among the names of variants, those that are whole."""
    names = list(variants)
    found = []
    for base in names:
        runs = {
            name: frozenset(name.removeprefix(base).split(SEPARATOR)[1:])
            for name in names
            if name == base or name.startswith(base + SEPARATOR)
        }
        nested = any(base.startswith(other + SEPARATOR) for other in names)
        factors = tuple(dict.fromkeys(part for name in runs for part in name.removeprefix(base).split(SEPARATOR)[1:]))
        design = Design(base, factors, runs)
        if len(factors) > 1 and not nested and design.balanced:
            found.append(design)
    return found


def contrasts(design: Design) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Each effect that can be estimated, and its aliases up to the same order."""
    named = {
        factors: design.signs(factors)
        for order in range(1, min(HIGHEST_ORDER, len(design.factors)) + 1)
        for factors in combinations(design.factors, order)
    }
    effects: dict[tuple[str, ...], tuple[str, ...]] = {}
    for factors, column in named.items():
        if abs(column.sum()) == len(column):  # a word of the defining relation: the mean
            continue
        same = next((other for other in effects if abs(column @ named[other]) == len(column)), None)
        if same is None:
            effects[factors] = ()
        else:
            sign = "" if column @ named[same] > 0 else "-"
            effects[same] += (sign + " x ".join(factors),)
    return effects


def effects(
    design: Design, drifts: Mapping[str, pd.Series], floor: float = math.nan, unit: str = PROMPT
) -> list[Effect]:
    """All effects of a design. drifts: variant -> drift by case, positive; floor: the noise floor, NaN if unknown.

    An effect is a mean over many runs and the noise floor is that of one, so an effect above it is well above it.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = pd.concat([drifts[name] for name in design.runs], axis=1, join="inner").map(np.log)  # (cases, runs)
    found = []
    for factors, aliases in contrasts(design).items():
        high = design.signs(factors) > 0
        on, off = (np.exp(logs.loc[:, side].mean(axis=1, skipna=False)) for side in (high, ~high))
        ratio = over_units(on, off, unit)
        found.append(Effect(factors, aliases, ratio.estimate, ratio.lo, ratio.hi, _finding(ratio.lo, ratio.hi, floor)))
    return found


def _finding(lo: float, hi: float, floor: float) -> str:
    if math.isnan(lo):
        return "inconclusive"
    relations = (relation for relation in _FINDINGS if decide(relation, lo, hi, 0.0, floor) == "supported")
    return next((_FINDINGS[relation] for relation in relations), "inconclusive")


def records(run: Run) -> list[dict[str, Any]]:
    """The factorials of a run as strict JSON.

    The noise floor is the largest of the variants that a claim of the run names as noise of the base.
    """
    out, unit = [], unit_of(run.manifest)
    for design in designs(run.manifest.variants):
        drifts = {name: final_drift(run, name) for name in design.runs}
        lost = [name for name, values in drifts.items() if values.empty or not np.all(values > 0)]
        equivalents = _equivalents(run.manifest.claims, design.base)
        floors = [noise_floor(final_drift(run, name), drifts[design.base], unit) for name in equivalents]
        floor = float(np.max(floors)) if floors else math.nan
        means = {name: None if name in lost else float(np.exp(np.log(v).mean())) for name, v in drifts.items()}
        record: dict[str, Any] = {"base": design.base, "factors": list(design.factors), "drift": means, "effects": []}
        record |= number_or_reason("noise_floor", floor, "not measured")
        if lost:
            record["effects_reason"] = f"the drift of {lost[0]} is not finite and above 0 in every case"
        else:
            record["effects"] = [_record(effect) for effect in effects(design, drifts, floor, unit)]
        out.append(record)
    return out


def _equivalents(claims: Iterable[Mapping[str, Any]], base: str) -> list[str]:
    """Variants that should equal `base`, according to the claims against it."""
    noise = [claim.noise for claim in map(Claim.from_dict, claims) if claim.against == base]
    return list(dict.fromkeys(name for names in noise for name in names))


def _record(effect: Effect) -> dict[str, Any]:
    out: dict[str, Any] = {"factors": list(effect.factors), "aliases": list(effect.aliases), "finding": effect.finding}
    if not math.isfinite(effect.ratio):
        nothing = number_or_reason("effect", math.nan, "undefined") | number_or_reason("ci95", math.nan, "undefined")
        return out | nothing
    out["effect"] = effect.ratio
    if not math.isfinite(effect.lo):
        return out | number_or_reason("ci95", math.nan, "too few prompts")
    return out | {"ci95": [effect.lo, effect.hi]}
