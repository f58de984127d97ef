"""The page on what arrives of a change of weights: a row a format, verdicts, the distribution over layers, a map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from precision_lab.analysis.claims import Claim
from precision_lab.analysis.summary import claim_entry
from precision_lab.analysis.survival import Row, judge, stated, summarize
from precision_lab.numerics.survival import expected, implied_gain
from precision_lab.record.files import write_text, writing
from precision_lab.record.summary import ClaimEntry, to_json
from precision_lab.record.survival import Findings, read_table
from precision_lab.report.figures import style, survival_layers, survival_map
from precision_lab.report.rendering import embed, render, weights_text
from precision_lab.report.wording import number

PAGE = "report.html"
HEADINGS = (
    *(
        "format",
        "fused",
        "rounding",
        "layers",
        "step / delta",
        "codes changed",
        "values changed",
        "correlation",
        "gain",
    ),
    *("relative error", "codes changed at 0", "worst correlation", "worst linear"),
)
WAYS = (("before", "nearest"), ("after", "nearest"), ("after", "stochastic"))
BRIEF = ("format", "step / delta", "codes changed", "correlation", "gain", "worst correlation", "worst linear")
WORDS = "Three values: fused before quantising; fused after it; fused after it and rounded stochastically."
LIVE = "A live adapter, beside the weight, arrives in full in every format: by construction, not measured."


@dataclass(frozen=True)
class View:
    """A folder as the page shows it."""

    found: Findings
    table: pd.DataFrame
    rows: list[Row]
    claims: list[ClaimEntry]


def judged(folder: Path) -> View:
    """A folder with its claims judged; nothing is written.

    Raises InputError for a folder without a result, or with a damaged file.
    """
    found, table = Findings.read(folder), read_table(folder)
    claims = [claim_entry(claim, judge(claim, table)) for claim in _claims(found, table)]
    rows = summarize(table)
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        summary.setdefault(row.format, {}).setdefault(row.order, {})[row.rounding] = _strict(asdict(row))
    found = replace(found, claims=[to_json(claim) for claim in claims], summary=summary)
    return View(found, table, rows, claims)


def write(folder: Path) -> tuple[Path, View]:
    """Judges the claims, and writes `report.html` and its figures; returns the page's path and what it shows.

    Raises InputError as `judged` does. The same files give the same page.
    """
    view = judged(folder)
    found, table, claims = view.found, view.table, view.claims
    found.write(folder)
    figures_folder = folder / "figures"
    with writing(figures_folder):
        figures_folder.mkdir(exist_ok=True)
    with style.theme():
        drawings = [survival_layers.draw(table), survival_map.draw(table)]
        figures = embed(drawings, figures_folder)
    page = folder / PAGE
    content = render(
        "survival.html",
        found=found,
        weights_text=weights_text(found.checkpoint),
        title=title(view),
        statements=statements(view, verdicts=False),
        headings=HEADINGS,
        rows=cells(view),
        claims=claims,
        figures=figures,
    )
    write_text(page, content)
    return page, view


def title(view: View) -> str:
    """What was measured."""
    found = view.found
    ended = "" if found.status == "complete" else ", interrupted"
    where = f"{found.sites} linear{'s' * (found.sites != 1)} of {found.checkpoint.name}"
    return f"What arrives of a change: {found.change}; medians over {where}{ended}"


def brief(view: View) -> list[tuple[str, ...]]:
    """A row a format, under `BRIEF`: the ways to store it side by side, and the worst linear of any of them."""
    ways = {(row.format, row.order, row.rounding): row for row in view.rows}
    rows = []
    for name in dict.fromkeys(row.format for row in view.rows):
        own = [ways.get((name, *way)) for way in WAYS]
        worst = min((row for row in view.rows if row.format == name), key=_least)
        step = next(row.step_over_delta for row in view.rows if row.format == name)
        parts = [
            "  ".join(number(None) if row is None else text(getattr(row, column)) for row in own)
            for column, text in (("changed_codes", _share), ("correlation", _text), ("gain", _text))
        ]
        rows.append((name, _text(step), *parts, _text(worst.worst_correlation), worst.worst))
    return rows


def _least(row: Row) -> float:
    return math.inf if math.isnan(row.worst_correlation) else row.worst_correlation


def cells(view: View) -> list[tuple[str, ...]]:
    """The rows as text, under `HEADINGS`."""
    return [
        (
            *(row.format, row.order, row.rounding, str(row.linears), _text(row.step_over_delta)),
            *(_share(row.changed_codes), _share(row.changed_values), _text(row.correlation), _text(row.gain)),
            *(_text(row.relative_error), _share(row.codes_without_delta), _text(row.worst_correlation), row.worst),
        )
        for row in view.rows
    ]


def statements(view: View, verdicts: bool = True) -> list[str]:
    """Sentences: formats that do not fit, the live adapter, what a uniform quantiser would do, and the verdicts."""
    found = view.found
    lines = [LIVE]
    if found.unchanged:
        lines.append(f"{found.unchanged} linears are left out: their change is zero everywhere.")
    for name, entry in found.formats.items():
        if entry.reason:
            lines.append(f"{name} fits {entry.fits} of {entry.of} linears: {entry.reason}")
    for claim in view.claims if verdicts else ():
        ends = "" if claim.ci95 is None else f" [{claim.ci95[0]:.3g}, {claim.ci95[1]:.3g}]"
        value = claim.effect.reason if claim.effect.value is None else f"{claim.effect.value:.3g}"
        lines.append(f"{claim.verdict:>12}  {claim.id}: {claim.text} (found {value}{ends} beside {claim.bound:g})")
    lines += [each for row in view.rows if row.rounding == "nearest" and (each := _expectation(row, view))]
    return lines


def _expectation(row: Row, view: View) -> str:
    """For the subject of a claim: what the ratio of step and change implies on a fixed grid, beside what was found."""
    if not any(claim.subject.startswith(f"{row.format}:{row.order}:") for claim in view.claims):
        return ""
    if not row.step_over_delta >= 3 or math.isnan(row.changed_codes) or math.isnan(row.correlation):
        return ""
    wanted = expected(row.step_over_delta)
    gain = implied_gain(row.step_over_delta, row.changed_codes, row.correlation)
    found = f"{100 * row.changed_codes:.1f} %, {row.correlation:.2f} and {row.gain:.2f}"
    return (
        f"{row.format} fused {row.order}: at a step of {row.step_over_delta:.3g} times the change, a uniform quantiser "
        f"on a fixed grid changes {100 * wanted.changed:.1f} % of the codes, with correlation {wanted.correlation:.2f} "
        f"and gain 1. Found: {found}; if every change were one step, share and correlation would imply gain {gain:.2f}."
    )


def _strict(values: Mapping[str, Any]) -> dict[str, Any]:
    """With null for numbers that are not finite."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }


def _claims(found: Findings, table: pd.DataFrame) -> list[Claim]:
    subjects = sorted({":".join(key) for key in zip(table["format"], table["order"], table["rounding"], strict=True)})
    raw = {
        str(claim.get("id", "?")): {key: value for key, value in claim.items() if key != "id"} for claim in found.stated
    }
    return stated(raw, subjects)


def _text(value: float) -> str:
    return number(None if math.isnan(value) else value)


def _share(value: float) -> str:
    return number(None) if math.isnan(value) else f"{100 * value:.3g} %"
