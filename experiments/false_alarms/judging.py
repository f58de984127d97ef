"""Judges a run against an entry of a baseline: its violations, and the share of each margin that it uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from precision_lab.analysis.gate import bands, drift, rounding, sketches
from precision_lab.analysis.gate.bands import Margin
from precision_lab.analysis.gate.entry import Entry
from precision_lab.analysis.gate.judge import Limits
from precision_lab.analysis.gate.violation import Violation, by_site
from precision_lab.record.layout import Layout

Tables = Mapping[str, pd.DataFrame]
NONE = Margin(bits=0.0, spread=0.0, headroom_bits=0.0)
BEYOND_NUMBERS = 99.0
"""The share for a deviation without a numeric distance."""


class Use(NamedTuple):
    """The share of a margin that a run used, at the site that used most; 1 is an alarm."""

    share: float
    address: str
    variant: str
    metric: str


class Fare(NamedTuple):
    """The judgement of a run. `used`: the use of the margins of ranges, headroom and drift; None inside the bands."""

    violations: list[Violation]
    used: dict[str, Use | None]

    @property
    def first_sites(self) -> list[str]:
        return [line.first.address for line in by_site(self.violations)][:3]


def deviations(entry: Entry, table: pd.DataFrame, limits: Limits, layout: Layout) -> dict[str, Any]:
    """The largest deviation of pinned cases from `entry`, and the largest as a share of its limit, with its site."""
    moved = sketches.moved(entry.sketches, sketches.learn(table, layout))
    site = ["component", "site", "port"]
    moved = moved.join(entry.sketches.groupby(site)["noise"].first(), on=site)
    share = moved["rel_l2"] / (limits.noise_factor * moved["noise"]).clip(lower=limits.tolerance)
    worst = moved.loc[share.idxmax()]
    return {
        "largest_deviation": float(f"{moved['rel_l2'].max():.3g}"),
        "largest_share_of_limit": float(f"{share.max():.3g}"),
        "at": layout.address(worst["component"], worst["site"], worst["port"]),
    }


def fare(entry: Entry, tables: Tables, limits: Limits, layout: Layout) -> Fare:
    """Judges the run with `tables` against the bands of `entry`."""
    found = bands.judge(entry.bands, tables["activations"], limits.ranges, layout)
    found.add(drift.judge(entry.drift, tables["drift"], limits.drift, entry.noise, layout))
    found.add(rounding.judge(entry.rounding, tables["activations"], layout))
    outside = bands.judge(entry.bands, tables["activations"], NONE, layout).violations
    drifted = drift.judge(entry.drift, tables["drift"], NONE, entry.noise, layout).violations
    lost = limits.ranges.headroom_bits
    return Fare(
        found.violations,
        {
            "ranges": most_used([v for v in outside if v.kind == "ranges"], entry.bands, limits.ranges),
            "headroom": most_used([v for v in outside if v.kind == "headroom"], entry.bands, Margin(lost, 0.0)),
            "drift": most_used([v for v in drifted if v.kind == "drift"], entry.drift, limits.drift),
        },
    )


def most_used(outside: Sequence[Violation], learned: pd.DataFrame, margin: Margin) -> Use | None:
    """The largest share of `margin` used by the values outside the bands `learned` without widening."""
    rows = learned.set_index(["variant", "component", "site", "port"]).sort_index()
    uses = [Use(_share(v, rows, margin), v.address, v.variant, v.metric) for v in outside]
    return max(uses, default=None)


def _share(violation: Violation, rows: pd.DataFrame, margin: Margin) -> float:
    row: Any = rows.loc[(violation.variant, violation.component, violation.site, violation.port)]
    if isinstance(row, pd.DataFrame):  # drift has one row per mode
        row = row[row["mode"] == ("teacher" if "(local)" in violation.metric else "free")].iloc[0]
    name = violation.metric.removeprefix("log2_rel_l2 ").removesuffix(" (local)")
    width = row[f"{name}_max"] - row[f"{name}_min"] if margin.spread else 0.0
    return min(float(violation.magnitude / (margin.bits + margin.spread * width)), BEYOND_NUMBERS)
