"""The page on another program's arrays beside the lab's, and a strict summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from precision_lab.errors import inline
from precision_lab.record.address import split_port
from precision_lab.record.files import number_or_reason, write_json
from precision_lab.record.foreign import Comparison, Judged
from precision_lab.report import sections
from precision_lab.report.figures import dump as figures
from precision_lab.report.sections import Section, text
from precision_lab.report.wording import MISSING

SUMMARY = "summary.json"
SCHEMA_VERSION = 1
MOST_ROWS = 1000
AROUND = 5
COLUMNS = ("array", "verdict", "units", "share of the limit", "error", "rounding", "format", "judged with")
_NUMERIC = frozenset({2, 3, 4, 5})
_NAMED = 4
_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_COLUMNS = (
    "Error: relative L2 distance from the lab's fp32 result on the inputs that the other program gave. Units: the "
    "error in units of rounding of the format, 2⁻⁸ for bfloat16, 2⁻¹¹ for float16 and 2⁻²⁴ for float32. Rounding: the "
    "error of a correct operation, as measured. An array is wrong above 1 in the share of the limit."
)


def write(found: Comparison, about: Mapping[str, str], folder: Path) -> Path:
    """Writes compare.html, its figure and summary.json into `folder`; returns the page's path.

    about: what was compared, by name: file, model, prompt, step.
    """
    write_json(folder / SUMMARY, summary(found, about))
    with sections.theme():
        drawings = [figures.draw(found)]
        title = f"{about['file']} against {about['model']}"
        facts = [f"{name}: {value}" for name, value in about.items()]
        return sections.write(folder, title, facts, answers(found), list(_page(found)), drawings)


def answers(found: Comparison) -> list[str]:
    """The short answer in sentences, the verdict first."""
    lines = [verdict(found), coverage(found)]
    if found.unknown:
        first = [(inline(name), hint) for name, hint in list(found.unknown.items())[:_NAMED]]
        named = [f"{name} ({hint})" if hint else name for name, hint in first]
        more = f", and {len(found.unknown) - _NAMED} more" if len(found.unknown) > _NAMED else ""
        lines.append(f"not in this pass: {', '.join(named)}{more}")
    return lines


def coverage(found: Comparison) -> str:
    """How much of the pass is judged."""
    return (
        f"{len(found.rows)} of {len(found.rows) + len(found.unknown)} arrays compared, in {found.format}; the dump "
        f"holds the output of {found.covered} of {found.operations} operations"
    )


def verdict(found: Comparison) -> str:
    """The verdict in a sentence, with the first wrong operation."""
    if found.first_wrong is None:
        if found.format == "float32":
            return "right in fp32"
        return f"right within {_SHORT[found.format]} rounding"
    row = found.rows[found.first_wrong]
    where = "in the largest 1 % of its errors " if row.tail else ""
    return (
        f"wrong from {named(row)} on: {row.address} deviates by {row.error:.3g}, {row.units:.3g} units of "
        f"{_SHORT[row.format]} rounding, {where}{row.share:.3g} times the limit; {_hint(row)}"
        f"{found.wrong} of {len(found.rows)} arrays are wrong"
    )


def _hint(row: Judged) -> str:
    """What a wrong array looks like."""
    if row.fits:
        return f"it is nearer to {row.fits}; "
    return f"its values are rounded to {row.rounded}; " if row.rounded else ""


def named(row: Judged) -> str:
    """The operation that an array judges, or those among which the wrong one is."""
    if not row.operations:
        is_input = split_port(row.address)[1].startswith("in")
        return f"{'the input' if is_input else 'the arrangement'} of {row.address}"
    if row.local:
        return row.operations[0]
    return f"one of {', '.join(row.operations)}"


def nearest_rows(found: Comparison) -> tuple[str, list[Judged]]:
    """A title, and in order of execution the rows around the first that is wrong, or those nearest to the limit."""
    rows, first = list(found.rows), found.first_wrong
    if first is None:
        largest = sorted(range(len(rows)), key=lambda at: -rows[at].share)[: 2 * AROUND]
        return "The arrays nearest to what rounding explains", [rows[at] for at in sorted(largest)]
    around = rows[max(0, first - AROUND) : first + AROUND + 1]
    return "The arrays before and after the first that is wrong, in order of execution", around


def cells(row: Judged) -> tuple[str, ...]:
    """A row of the tables with COLUMNS."""
    if row.local:
        judged = row.operations[0] if row.operations else "an array of the dump"
    else:
        judged = f"accumulated over {len(row.operations)} operations: {', '.join(row.operations)}"
    numbers = (text(row.units), text(row.share), text(row.error), text(row.explained))
    looks = f": {row.fits}" if row.fits else f": rounded to {row.rounded}" if row.rounded else ""
    return (row.address, f"wrong{looks}" if row.wrong else "right", *numbers, row.format, judged)


def _page(found: Comparison) -> Iterator[Section]:
    title, rows = nearest_rows(found)
    yield Section(title, [_COLUMNS], COLUMNS, [cells(row) for row in rows], _NUMERIC)
    wrong = [row for row in found.rows if row.wrong]
    if wrong:
        listed = [cells(row) for row in wrong[:MOST_ROWS]]
        note = (
            "Each array is judged on the inputs that the other program gave it, so every array listed here is wrong by "
            "its own operation."
        )
        some = [f"The first {MOST_ROWS} of {len(wrong)} are listed."] if len(wrong) > MOST_ROWS else []
        yield Section("All wrong arrays", [note, *some], COLUMNS, listed, _NUMERIC, searched=len(listed) > 8)
    kept = sorted(sorted(range(len(found.rows)), key=lambda at: -found.rows[at].share)[:MOST_ROWS])
    some = (
        [f"The {MOST_ROWS} of {len(found.rows)} arrays nearest to the limit; {SUMMARY} has all."]
        if len(found.rows) > MOST_ROWS
        else []
    )
    every = [cells(found.rows[at]) for at in kept]
    note = "In order of execution."
    yield Section("All arrays", [note, *some], COLUMNS, every, _NUMERIC, folded=len(every) > 30, searched=True)
    if found.unknown:
        names = [(inline(name), hint or MISSING) for name, hint in list(found.unknown.items())[:MOST_ROWS]]
        note = "Names that this pass does not have are not compared."
        yield Section("Arrays that are not in this pass", [note], ("name", "nearest"), names, folded=len(names) > 10)


def summary(found: Comparison, about: Mapping[str, str]) -> dict[str, Any]:
    """summary.json of the comparison, with the words of the page."""
    first = found.first_wrong
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "dump",
        **about,
        "right": first is None,
        "answers": answers(found),
        "format": found.format,
        "arrays": len(found.rows),
        "operations": found.operations,
        "covered": found.covered,
        "wrong": found.wrong,
        "first_wrong": None if first is None else _row(found.rows[first]),
        "rows": [_row(row) for row in found.rows],
        "unknown": dict(found.unknown),
    }


def _row(row: Judged) -> dict[str, Any]:
    numbers = {"error": row.error, "units": row.units, "rounding": row.explained, "share_of_limit": row.share}
    entry: dict[str, Any] = {"array": row.address, "operations": list(row.operations), "format": row.format}
    for name, value in numbers.items():
        entry |= number_or_reason(name, value, "not finite")
    looks = {"rounded_to": row.rounded or None, "fits": row.fits or None}
    return entry | {"tail": row.tail, "wrong": row.wrong, **looks}
