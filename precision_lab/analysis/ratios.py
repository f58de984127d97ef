"""Ratios of two variants with the units that are independent: prompts, or rounds of timing."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from precision_lab.numerics.intervals import Ratio, geometric_mean_ratio, paired_ratio

PROMPT = "prompt_id"


def over_prompts(subject: pd.Series, against: pd.Series) -> Ratio:
    """The geometric mean over prompts of the ratio in the cases (prompt_id, seed) that both have, with its interval.

    Prompts are the units: the seeds of one are alike and are averaged, on logarithms, before prompts are compared.
    """
    paired = pd.concat([subject, against], axis=1, join="inner")
    values = paired.to_numpy(float)
    return geometric_mean_ratio(values[:, 0], values[:, 1], _prompts(paired))


def over_rounds(subject: pd.Series, against: pd.Series, confidence: float = 0.95) -> Ratio:
    """The median ratio over the rounds that both have, with its interval."""
    values = pd.concat([subject, against], axis=1, join="inner").to_numpy(float)
    return paired_ratio(values[:, 0], values[:, 1], confidence)


def noise_floor(equivalent: pd.Series, original: pd.Series) -> float:
    """The typical relative difference of two variants that are the same function: exp(rms of the log ratio) - 1.

    The squares are averaged over the cases of each prompt and then over prompts, so that every prompt has the weight
    that it has in the ratios. Unlike these, the floor describes a single case: averaged over seeds first, it would
    shrink with their number, and the same effect would rise above it. A root mean square neither grows nor shrinks with
    the number of cases, as a maximum or a mean would.

    NaN where a value is not positive and finite, or there is no common case.
    """
    paired = pd.concat([equivalent, original], axis=1, join="inner")
    values = paired.to_numpy(float)
    if not len(values) or not np.all(np.isfinite(values) & (values > 0)):
        return math.nan
    squares = pd.Series(np.log(values[:, 0] / values[:, 1]) ** 2)
    return float(np.expm1(np.sqrt(squares.groupby(_prompts(paired)).mean().mean())))


def _prompts(paired: pd.DataFrame) -> pd.Index:
    return paired.index.get_level_values(PROMPT)
