"""The page on a scan of sensitivity: the worst and the best groups of each candidate, and a map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from precision_lab.analysis.sensitivity import Units, candidates_of, ranking, units_of
from precision_lab.record.columns import Column
from precision_lab.record.files import write_text, writing
from precision_lab.record.scan import Scan
from precision_lab.record.scan_tables import KEPT, OF_A_SCAN
from precision_lab.report.figures import sensitivity_map, style
from precision_lab.report.rendering import embed, render, weights_text
from precision_lab.report.wording import MISSING, number

PAGE = "report.html"
HEADINGS = ("rank", "group", "velocity error", "local error", "noise floor", "free drift", "saved KiB", "ties with")
SHOWN = 10
"""Groups at either end of the tables of the page."""


class Section(NamedTuple):
    """One candidate on the page. rows: as `cells` gives them, and a note where groups are left out."""

    candidate: str
    title: str
    rows: Sequence[Sequence[str] | str]


def write(scan: Scan) -> Path:
    """Writes `figures/sensitivity.png`, `.svg` and `report.html` into the folder of a scan; returns the page's path.

    The same tables give the same bytes.
    """
    folder = scan.path / "figures"
    with writing(folder):
        folder.mkdir(exist_ok=True)
    with style.theme():
        figures = embed([sensitivity_map.draw(scan)], folder)
    sections = [_section(scan, candidate) for candidate in candidates_of(scan.sensitivity)]
    page = scan.path / PAGE
    write_text(
        page,
        render(
            "sensitivity.html",
            manifest=scan.manifest,
            weights_text=weights_text(scan.manifest.checkpoint),
            sections=sections,
            headings=HEADINGS,
            figures=figures,
            remarks=remarks(scan),
            unfit=[tuple(map(str, row)) for row in scan.unfit[["group", "candidate", "reason"]].to_numpy()],
            columns=_columns(),
            groups=scan.groups["group"].nunique(),
            steps=steps(scan),
            cases=len(scan.sensitivity[["prompt_id", "seed"]].drop_duplicates()),
        ),
    )
    return page


def _section(scan: Scan, candidate: str) -> Section:
    ranked = ranking(scan.sensitivity, candidate)
    shown = ends(ranked, SHOWN)
    rows: list[Sequence[str] | str] = [cells(row) for row in shown]
    if len(shown) < len(ranked):
        rows.insert(SHOWN, f"{len(ranked) - len(shown)} more in sensitivity.parquet")
    return Section(candidate, title(candidate, ranked), rows)


def ends(ranked: pd.DataFrame, count: int) -> list[dict[str, Any]]:
    """The `count` first and last rows of a ranking, each once."""
    rows = ranked.to_dict("records")
    found = rows if len(rows) <= 2 * count else [*rows[:count], *rows[-count:]]
    return [{str(key): value for key, value in row.items()} for row in found]


def title(candidate: str, ranked: pd.DataFrame) -> str:
    """The candidate, and how much of its ranking can be told apart."""
    places = ranked["rank"].nunique()
    tied = int((ranked["tied"] > 0).sum())
    return f"{candidate}: {len(ranked)} groups at {places} ranks, {tied} of them tied"


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of a ranking as text, under `HEADINGS`."""
    lost = int(row["num_nonfinite"])
    error = f"{lost} non-finite" if lost else _number(row["velocity_error"])
    others = int(row["tied"])
    return [
        f"{'=' if others else ''}{row['rank']}",
        str(row["group"]),
        error,
        _number(row["local_error"]),
        _number(row["noise_floor"]),
        _number(row["free_drift"]),
        _number(float(row["bytes_saved"]) / 1024),
        f"{others} other{'s' * (others != 1)}" if others else "",
    ]


def _number(value: Any) -> str:
    return MISSING if value is None or pd.isna(value) or not math.isfinite(value) else number(float(value))


def steps(scan: Scan) -> list[int]:
    """The numbers of the steps that were measured."""
    return sorted(int(step) for step in scan.sensitivity["step"].unique())


def remarks(scan: Scan) -> list[str]:
    """What a reader must know of the ranking: what decides a tie, and what was not measured."""
    said: Mapping[Units, str] = {
        "prompts": "Groups tie where the 95 % interval of their ratio, over the prompts, contains 1, or their "
        "difference is within the noise floor.",
        "steps": "Groups tie where the 95 % interval of their ratio, over the measured steps, contains 1, or their "
        "difference is within the noise floor. Steps of one prompt are alike: three prompts give an interval over "
        "prompts.",
        "none": "Groups tie where their difference is within the noise floor. There are too few steps and prompts "
        "for an interval.",
    }
    found = [said[units_of(scan.sensitivity)]]
    if scan.noise.empty:
        found.append("No noise floor was measured: the equivalent rewrite fits none of the groups.")
    return [*found, *scan.manifest.notes]


def _columns() -> dict[str, Sequence[Column]]:
    return {name: OF_A_SCAN[name] for name in KEPT}
