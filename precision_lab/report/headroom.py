"""Where a variant comes nearest to the end of a format: its sites with the least headroom."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from precision_lab.report.tables import HEADROOM, Run
from precision_lab.report.wording import address

MOST_SITES = 10


@dataclass(frozen=True)
class Site:
    """The worst moment of one site: greatest finite amax over steps, branches, prompts and seeds."""

    address: str
    step: int | None
    amax: float
    bits: tuple[float, ...]  # log2(format max / amax), in the order of HEADROOM; negative: values beyond the format


@dataclass(frozen=True)
class Headroom:
    """One variant's table; `nonfinite` of its `recorded` sites were not finite at some moment."""

    variant: str
    sites: tuple[Site, ...]
    nonfinite: int
    recorded: int


def worst(run: Run) -> list[Headroom]:
    """A table a variant, in the order of `run.variants`; empty where no activations were recorded."""
    if run.activations is None:
        return []
    groups = dict(list(run.activations.groupby("variant")))
    return [_of(name, groups[name]) for name in run.variants if name in groups]


def _of(variant: str, rows: pd.DataFrame) -> Headroom:
    key = ["component", "site", "port"]
    sites = rows.groupby(key)["nonfinite"].any()
    peaks = rows.dropna(subset=["amax"]).sort_values("amax", ascending=False, kind="stable").drop_duplicates(key)
    listed = tuple(_site(row) for _, row in peaks.head(MOST_SITES).iterrows())
    return Headroom(variant, listed, int(sites.sum()), len(sites))


def _site(row: pd.Series) -> Site:
    step = None if pd.isna(row["step"]) else int(row["step"])
    return Site(
        address({key: row[key] for key in ("component", "site", "port")}),
        step,
        row["amax"],
        tuple(row[column] for column in HEADROOM),
    )
