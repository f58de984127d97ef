"""The settings of `culprits`, closed and typed as those in `precision_lab.cli.schema`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from precision_lab.cli.schema import Closed, Count, Experiment, Margin, Seed


class CriterionSettings(Closed):
    drift: Margin | None
    metric: str | None
    least: float | None
    most: float | None
    claim: str | None
    verdict: str


class ValidationSettings(Closed):
    prompts: Sequence[str] | None
    seeds: Sequence[Seed] | None


class Culprits(Experiment):
    """conf/culprits.yaml."""

    candidate: Annotated[Mapping[str, Any], "one candidate by name, candidate=[float16]"]
    at: Annotated[str, "rest or found"]
    of: Annotated[str | Sequence[str] | None, "a pattern of sites, a list of patterns, or null"]
    by: Annotated[str | Sequence[str], "keys of groups, like [operation, block]"]
    between: Annotated[Sequence[str] | None, "two variants, or the paths of two checkpoints: between=[GOOD,BAD]"]
    criterion: Annotated[
        CriterionSettings | str, "finite, or one of criterion.drift=, criterion.metric= and criterion.claim="
    ]
    searched: Count | None
    validate_: ValidationSettings = Field(alias="validate")
    checks: Annotated[int, Field(ge=0), "a whole number of at least 0"]
    subsets: Annotated[int, Field(ge=0), "a whole number of at least 0"]
