"""Ratios of two variants with the units that are independent: prompts, or rounds of timing."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from precision_lab.numerics.intervals import Ratio, geometric_mean_ratio, paired_ratio
from precision_lab.record.manifest import Manifest

PROMPT, SEED = "prompt_id", "seed"


def unit_of(manifest: Manifest) -> str:
    """The level of a case (prompt_id, seed) whose entries are independent: prompts.

    Seeds for a subject that takes no prompt, whose only prompt is therefore blank.
    """
    return SEED if [prompt.strip() for prompt in manifest.prompts] == [""] else PROMPT


def over_units(subject: pd.Series, against: pd.Series, unit: str = PROMPT) -> Ratio:
    """The geometric mean over units of the ratio in the cases (prompt_id, seed) that both have, with its interval.

    The seeds of one prompt are alike: they are averaged, on logarithms, before prompts are compared.
    """
    paired = pd.concat([subject, against], axis=1, join="inner")
    values = paired.to_numpy(float)
    return geometric_mean_ratio(values[:, 0], values[:, 1], _labels(paired, unit))


def over_rounds(subject: pd.Series, against: pd.Series, confidence: float = 0.95) -> Ratio:
    """The median ratio over the rounds that both have, with its interval."""
    values = pd.concat([subject, against], axis=1, join="inner").to_numpy(float)
    return paired_ratio(values[:, 0], values[:, 1], confidence)


def noise_floor(equivalent: pd.Series, original: pd.Series, unit: str = PROMPT) -> float:
    """The typical relative difference of two variants that are the same function: exp(rms of the log ratio) - 1.

    The squares are averaged over the cases of each unit and then over units, so that every prompt has the weight that
    it has in the ratios. Unlike these, the floor describes a single case: averaged over seeds first, it would
    shrink with their number, and the same effect would rise above it. A root mean square neither grows nor shrinks with
    the number of cases, as a maximum or a mean would.

    NaN where a value is not positive and finite, or there is no common case.
    """
    paired = pd.concat([equivalent, original], axis=1, join="inner")
    values = paired.to_numpy(float)
    if not len(values) or not np.all(np.isfinite(values) & (values > 0)):
        return math.nan
    squares = pd.Series(np.log(values[:, 0] / values[:, 1]) ** 2)
    return float(np.expm1(np.sqrt(squares.groupby(_labels(paired, unit)).mean().mean())))


def _labels(paired: pd.DataFrame, unit: str) -> pd.Index:
    return paired.index.get_level_values(unit)
