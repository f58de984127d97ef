"""How a generation failed or nearly failed: the arrays before its first non-finite value, and near misses.

Like DebugUnderflowOverflow of transformers: the frames before the failure show whether values grew into it or jumped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from precision_lab.analysis.near_misses import near_misses
from precision_lab.numerics.formats import FORMATS
from precision_lab.record.layout import Layout
from precision_lab.report.view import View
from precision_lab.report.wording import address, place

FRAMES = 8
MOST_SITES = 10
_MOMENT = ("step", "branch", "prompt_id", "seed")


@dataclass(frozen=True)
class Frame:
    """One recorded array. bits: log2(max / amax) in the variant's format. Both are None for one that is not finite."""

    address: str
    branch: str
    step: int | None
    amax: float | None
    bits: float | None


@dataclass(frozen=True)
class Anomaly:
    """A variant's earliest failure, of the generation with this prompt and seed; the last frame is the failing one.

    arose: whether the value arose in the module of the last frame; otherwise that is only the first that showed it.
    """

    variant: str
    dtype: str
    prompt_id: int
    seed: int
    frames: tuple[Frame, ...]
    arose: bool = False


def first(view: View) -> list[Anomaly]:
    """One for each variant with values that are not finite, in the order of `view.variants`."""
    found = (_located(view, name) or _recorded(view, name) for name in view.variants)
    return [anomaly for anomaly in found if anomaly is not None]


def _located(view: View, name: str) -> Anomaly | None:
    """The earliest failure whose origin the run looked for; the frames before it are recorded arrays."""
    table = view.run.nonfinite
    rows = table[(table["variant"] == name) & table["site"].notna()]
    if rows.empty:
        return None
    row = rows.sort_values(["order", "prompt_id", "seed"], kind="stable").iloc[0]
    branch, step = (_known(row[key]) for key in ("branch", "step"))
    place = address(view.layout, row["component"], row["site"], row["port"])
    last = Frame(place, branch or "", None if step is None else int(step), None, None)
    arose = not pd.isna(row["inputs_finite"])
    return _anomaly(view, name, row, (last,), arose)


def _recorded(view: View, name: str) -> Anomaly | None:
    """The earliest recorded array that is not finite, in a run that did not look for origins."""
    if view.activations is None:
        return None
    bad = view.activations[(view.activations["variant"] == name) & view.activations["nonfinite"]]
    if bad.empty:
        return None
    row = bad.sort_values(["order", "prompt_id", "seed"], kind="stable").iloc[0]
    return _anomaly(view, name, row, (_frame(row, view.entry(name).dtype.compute, view.layout),))


def _anomaly(view: View, name: str, row: pd.Series, last: tuple[Frame, ...], arose: bool = False) -> Anomaly:
    """The arrays of the generation of `row` that were recorded before it, and the frame of the failure."""
    dtype = view.entry(name).dtype.compute
    frames: tuple[Frame, ...] = ()
    if view.activations is not None and not pd.isna(row["order"]):
        rows = view.activations
        case = (rows["prompt_id"] == row["prompt_id"]) & (rows["seed"] == row["seed"]) & (rows["variant"] == name)
        before = rows[case & (rows["order"] < row["order"])].sort_values("order", kind="stable").tail(FRAMES)
        frames = tuple(_frame(frame, dtype, view.layout) for _, frame in before.iterrows())
    return Anomaly(name, dtype, int(row["prompt_id"]), int(row["seed"]), (*frames, *last), arose)


@dataclass(frozen=True)
class NearMiss:
    """A site that came near overflow in `near` of its `seen` arrays; the other fields describe the nearest of these."""

    address: str
    dtype: str
    amax: float
    bits: float
    near: int
    seen: int


@dataclass(frozen=True)
class NearMisses:
    """The nearest of the `count` sites where a variant came near overflow."""

    variant: str
    sites: tuple[NearMiss, ...]
    count: int


def near(view: View) -> list[NearMisses]:
    """One for each variant with near misses, in the order of `view.variants`."""
    found = near_misses(view.run.activations)
    groups = dict(list(found.groupby("variant")))
    return [_near(name, groups[name], view.layout) for name in view.variants if name in groups]


def _near(variant: str, rows: pd.DataFrame, layout: Layout) -> NearMisses:
    listed = tuple(
        NearMiss(
            place(layout, row["component"], row["site"], row["port"], *(_known(row[key]) for key in _MOMENT)),
            str(row["dtype"]),
            float(row["amax"]),
            float(row["bits"]),
            int(row["near"]),
            int(row["seen"]),
        )
        for _, row in rows.head(MOST_SITES).iterrows()
    )
    return NearMisses(variant, listed, len(rows))


def _known(value: Any) -> Any:
    return None if pd.isna(value) else value


def _frame(row: pd.Series, dtype: str, layout: Layout) -> Frame:
    own = dtype if dtype in FORMATS else row.get("dtype")  # of an array, if the components of a variant differ
    column = f"headroom_bits_{own}" if own in FORMATS else ""
    finite = not row["nonfinite"]
    return Frame(
        address(layout, row["component"], row["site"], row["port"]),
        str(row["branch"]),
        None if pd.isna(row["step"]) else int(row["step"]),
        float(row["amax"]) if finite else None,
        float(row[column]) if finite and column in row and pd.notna(row[column]) else None,
    )
