"""Violations as text: a table for the terminal, a table in Markdown, and the page that a gate writes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from precision_lab.analysis import markdown
from precision_lab.analysis.gate.violation import SiteLine, Violation, by_site

HEADER = ("site", "variants", "first at", "metric", "expected", "got", "bits beyond", "also")


def cells(line: SiteLine) -> tuple[str, ...]:
    """The cells of one site, in the columns of HEADER."""
    first = line.first
    beyond = f"{line.magnitude:.2f}" if math.isfinite(line.magnitude) else "-"
    others = dict.fromkeys(v.metric for v in line.violations if v.metric != first.metric)
    return (
        first.address,
        ", ".join(line.variants),
        moment(first),
        first.metric,
        first.expected,
        first.got,
        beyond,
        ", ".join(others),
    )


def moment(violation: Violation) -> str:
    """The first deviating array, such as "step 0 cond, square"."""
    when = "" if violation.step is None else f"step {violation.step}"
    parts = (" ".join(filter(None, (when, violation.branch))), violation.case if violation.case != "-" else "")
    return ", ".join(filter(None, parts)) or "-"


def text_table(violations: Iterable[Violation], shown: int = 20) -> str:
    """An aligned table with one line per site, in reading order; empty without violations."""
    lines = by_site(violations)
    rows = [HEADER, *(cells(line) for line in lines[:shown])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*text, *_more(lines, shown)]) if lines else ""


def table(violations: Iterable[Violation], shown: int = 50) -> str:
    """A Markdown table with one line per site, in reading order."""
    lines = by_site(violations)
    text = markdown.table(HEADER, [cells(line) for line in lines[:shown]])
    return "\n".join([text, *("\n" + more for more in _more(lines, shown))]) if lines else ""


def page(record: Mapping[str, Any], violations: Sequence[Violation]) -> str:
    """The human-readable summary of a gate: verdict, baseline, comparisons, and violations.

    record: the contents of gate.json.
    """
    verdict = "passed" if record["passed"] else "failed"
    baseline = record["baseline"]
    counts = ", ".join(f"{count} {kind}" for kind, count in record["checks"].items())
    text = [
        f"## Gate {record['experiment']} on {record['backend']}: {verdict}",
        f"Baseline: {baseline['device']}, MLX {baseline['mlx']} ({baseline['match']}). Compared: {counts}.",
    ]
    if violations:
        text.append(
            f"{len(by_site(violations))} sites deviate, in order of execution: the first is nearest to the cause."
        )
        text.append(table(violations))
    return "\n\n".join(text) + "\n"


def _more(lines: Sequence[SiteLine], shown: int) -> list[str]:
    return [f"and {len(lines) - shown} more sites"] if len(lines) > shown else []
