"""The settings of `search`, closed and typed as those in `precision_lab.cli.schema`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from precision_lab.cli.schema import Closed, Count, Folder, Sensitivity


class BudgetSettings(Closed):
    gb: Annotated[float | Sequence[float] | None, "gigabytes, a number or a list of numbers"]
    bits: Annotated[float | Sequence[float] | None, "bits a weight, a number or a list of numbers"]
    drift: Annotated[float | None, "a number above 0"]
    latency: Annotated[float | None, "a number above 0"]


class TrialSettings(Closed):
    cases: Count
    evaluations: Count
    sizes: Annotated[int, Field(ge=0), "a whole number of at least 0"]


class HoldoutSettings(Closed):
    prompts: Sequence[str] | None
    seeds: Sequence[int]


class OptunaSettings(Closed):
    baseline: Annotated[bool | Literal["auto"], "auto, true or false"]
    ranges: Count
    seed: Annotated[int, Field(ge=0, lt=2**32), "a whole number from 0 to 2^32 - 1"]


class Search(Sensitivity):
    """conf/search.yaml."""

    strategy: str
    budget: BudgetSettings
    sensitivity: Folder | None
    include: Annotated[Sequence[str], "names of techniques, like [affine4,nvfp4]"]
    trials: TrialSettings
    holdout: HoldoutSettings
    optuna: OptunaSettings
