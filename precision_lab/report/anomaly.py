"""How a generation failed: the arrays recorded before the first one that is not finite.

In the manner of DebugUnderflowOverflow of transformers: the frames before the failure say whether values grew into it
or jumped.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from precision_lab.numerics.formats import FORMATS
from precision_lab.report.tables import Run
from precision_lab.report.wording import address

FRAMES = 8


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
