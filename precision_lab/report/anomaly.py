"""How a generation failed, or nearly did: the arrays recorded before the first that is not finite, and near misses.

In the manner of DebugUnderflowOverflow of transformers: the frames before the failure say whether values grew into it
or jumped.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from precision_lab.analysis.near_misses import near_misses
from precision_lab.numerics.formats import FORMATS
from precision_lab.record.tables import read
from precision_lab.report.tables import Run
from precision_lab.report.wording import address

FRAMES = 8
MOST_SITES = 10


@dataclass(frozen=True)
class Frame:
    """One recorded array. bits: log2(max / amax) of the variant's format; with amax, None for one not finite."""

    address: str
    branch: str
    step: int | None
    amax: float | None
    bits: float | None


@dataclass(frozen=True)
class Anomaly:
    """A variant's earliest failure, of the generation with this prompt and seed; the last frame is the failing one."""

    variant: str
    dtype: str
    prompt_id: int
    seed: int
    frames: tuple[Frame, ...]


def first(run: Run) -> list[Anomaly]:
    """One for each variant with values that are not finite, in the order of `run.variants`."""
    if run.activations is None or "order" not in run.activations:
        return []
    found = []
    for name in run.variants:
        rows = run.activations[run.activations["variant"] == name]
        bad = rows[rows["nonfinite"]]
        if len(bad):
            row = bad.sort_values(["order", "prompt_id", "seed"], kind="stable").iloc[0]
            case = rows[(rows["prompt_id"] == row["prompt_id"]) & (rows["seed"] == row["seed"])]
            frames = case[case["order"] <= row["order"]].sort_values("order", kind="stable").tail(FRAMES + 1)
            stated = run.entry(name).get("dtype") or ""  # a summary says what weights are stored in too
            dtype = str(stated["compute"] if isinstance(stated, dict) else stated)
            listed = tuple(_frame(frame, dtype) for _, frame in frames.iterrows())
            found.append(Anomaly(name, dtype, int(row["prompt_id"]), int(row["seed"]), listed))
    return found


@dataclass(frozen=True)
class NearMiss:
    """A site that came near overflow in `near` of the `seen` arrays; address, dtype, amax, bits are of the nearest."""

    address: str
    dtype: str
    amax: float
    bits: float
    near: int
    seen: int


@dataclass(frozen=True)
class NearMisses:
    """Of one variant, the nearest of its `count` sites."""

    variant: str
    sites: tuple[NearMiss, ...]
    count: int


def near(run: Run) -> list[NearMisses]:
    """One for each variant with near misses, in the order of `run.variants`."""
    found = near_misses(read(run.path, "activations"))
    groups = dict(list(found.groupby("variant")))
    return [_near(name, groups[name]) for name in run.variants if name in groups]


def _near(variant: str, rows: pd.DataFrame) -> NearMisses:
    place = ("component", "site", "port", "step", "branch", "prompt_id", "seed")
    listed = tuple(
        NearMiss(
            address({key: None if pd.isna(row[key]) else row[key] for key in place}),
            str(row["dtype"]),
            float(row["amax"]),
            float(row["bits"]),
            int(row["near"]),
            int(row["seen"]),
        )
        for _, row in rows.head(MOST_SITES).iterrows()
    )
    return NearMisses(variant, listed, len(rows))


def _frame(row: pd.Series, dtype: str) -> Frame:
    column = f"headroom_bits_{dtype}" if dtype in FORMATS else ""
    finite = not row["nonfinite"]
    return Frame(
        address({key: row[key] for key in ("component", "site", "port")}),
        str(row["branch"]),
        None if pd.isna(row["step"]) else int(row["step"]),
        float(row["amax"]) if finite else None,
        float(row[column]) if finite and column in row and pd.notna(row[column]) else None,
    )
