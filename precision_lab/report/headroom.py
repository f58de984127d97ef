"""The sites of each variant with the least headroom."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from precision_lab.record.layout import Layout
from precision_lab.report.view import HEADROOM, View
from precision_lab.report.wording import address

MOST_SITES = 10
_SITE = ["component", "site", "port"]


@dataclass(frozen=True)
class Site:
    """The worst moment of one site: greatest finite amax over steps, branches, prompts and seeds.

    bits: log2(format max / amax), in the order of HEADROOM; negative for values beyond the format.
    """

    address: str
    step: int | None
    amax: float
    bits: tuple[float, ...]


@dataclass(frozen=True)
class Headroom:
    """One variant's table; `nonfinite` of its `recorded` sites were not finite at some moment."""

    variant: str
    sites: tuple[Site, ...]
    nonfinite: int
    recorded: int


def worst(view: View) -> list[Headroom]:
    """A table for each variant, in the order of `view.variants`; empty where no activations were recorded."""
    if view.activations is None:
        return []
    named = view.activations[["variant", *_SITE, "step", "amax", "nonfinite", *HEADROOM]]  # fewer columns to copy
    groups = dict(list(named.groupby("variant")))
    return [_of(name, groups[name], view.layout) for name in view.variants if name in groups]


def _of(variant: str, rows: pd.DataFrame, layout: Layout) -> Headroom:
    sites = rows.groupby(_SITE)["nonfinite"].any()
    peaks = rows.dropna(subset=["amax"]).sort_values("amax", ascending=False, kind="stable").drop_duplicates(_SITE)
    listed = tuple(_site(row, layout) for _, row in peaks.head(MOST_SITES).iterrows())
    return Headroom(variant, listed, int(sites.sum()), len(sites))


def _site(row: pd.Series, layout: Layout) -> Site:
    step = None if pd.isna(row["step"]) else int(row["step"])
    return Site(
        address(layout, row["component"], row["site"], row["port"]),
        step,
        row["amax"],
        tuple(row[column] for column in HEADROOM),
    )
