"""The page on devices beside each other, and a strict summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from precision_lab.analysis.devices import DIFFERS, GROUPS, NEAR, OTHER, PARTLY, RANDOM, SAME, Devices, Entry
from precision_lab.record.files import write_json
from precision_lab.report import sections
from precision_lab.report.figures import devices as figures
from precision_lab.report.sections import Section
from precision_lab.report.wording import MISSING

SUMMARY = "summary.json"
SCHEMA_VERSION = 1
_LONGEST = 160
_LONG = 30
"""Rows of a table that is closed at first."""

_SHORT = {
    "device": "device",
    "backend": "back end",
    "mlx": "MLX",
    "switches.MLX_ENABLE_TF32": "MLX_ENABLE_TF32",
}


def write(found: Devices, folder: Path) -> Path:
    """Writes compare.html, its figure and summary.json into `folder`; returns the page's path."""
    write_json(folder / SUMMARY, summary(found))
    facts = [f"{label}: {record.environment.get('device', MISSING)}" for label, record in found.records.items()]
    with sections.theme():
        drawings = [figures.draw(found)]
        labels = list(found.records)
        title = " and ".join(labels) if len(labels) == 2 else f"{len(labels)} devices"
        return sections.write(folder, f"Comparison of {title}", facts, answers(found), list(_page(found)), drawings)


def answers(found: Devices) -> list[str]:
    """The short answer in sentences, for the terminal and the top of the page."""
    if found.is_equal:
        return [f"nothing differs in {len(found.behaviours)} behaviours and {len(found.faults)} checks of faults"]
    lines = [_facts(found)]
    quiet = []
    for group in GROUPS:
        counts = found.counts(group)
        total = sum(counts.values())
        if counts[DIFFERS] or counts[OTHER]:
            compared = total - counts[PARTLY]
            lines.append(f"{group}: {counts[DIFFERS] + counts[OTHER]} of {compared} differ. {_first(found, group)}")
        elif total > counts[PARTLY]:
            quiet.append(f"{group.lower()} ({total - counts[PARTLY]})")
    if quiet:
        lines.append(f"No behaviour differs in: {', '.join(quiet)}")
    partly = sum(entry.verdict == PARTLY for entry in found.behaviours)
    if partly:
        lines.append(f"{partly} behaviours were not measured on every device")
    lines.append(_faults(found))
    lines += [
        f"Claim {entry.what}: {_by_device(found, entry.answers)}" for entry in found.claims if entry.verdict == DIFFERS
    ]
    lines += [f"{label} behaves {text}" for label, text in zip(found.records, found.readings, strict=True)]
    return lines


def _facts(found: Devices) -> str:
    texts = {name: texts for name, differs, texts in found.facts if differs}
    if not texts:
        return "Machine and software are the same"
    named = [f"{words} {_by_device(found, texts[name])}" for name, words in _SHORT.items() if name in texts]
    others = len(texts) - len(named)
    named += [f"{others} other facts" if others > 1 else "1 other fact"] if others else []
    return f"Machine and software differ: {'; '.join(named)}"


def _first(found: Devices, group: str) -> str:
    differing = [entry for entry in found.of_group(group) if entry.verdict in (DIFFERS, OTHER)]
    first = differing[0]
    return f"{'It is' if len(differing) == 1 else 'The first:'} {first.what}: {_by_device(found, first.answers)}"


def _by_device(found: Devices, answers: Sequence[str | None]) -> str:
    """The answers with the devices that gave them: `sequential (A, B), blocked (C)`."""
    by_answer: dict[str, list[str]] = {}
    for label, answer in zip(found.records, answers, strict=True):
        by_answer.setdefault(answer or "not measured", []).append(label)
    return ", ".join(f"{_cut(answer)} ({', '.join(labels)})" for answer, labels in by_answer.items())


def _faults(found: Devices) -> str:
    if not found.faults:
        return "No record checks for the faults of MLX that were reported in public; device measures them again"
    differing = [entry for entry in found.faults if entry.verdict == DIFFERS]
    present = [entry for entry in found.faults if "present" in entry.answers and entry not in differing]
    parts = [f"{entry.what}: {_by_device(found, entry.answers)}" for entry in differing]
    compared = sum(entry.verdict != PARTLY for entry in found.faults)
    if not compared:
        parts = ["no check was made on every device"]
    elif not differing:
        parts = [f"the verdicts of all {compared} checks agree"]
    if present:
        parts.append(f"present wherever checked: {', '.join(entry.what for entry in present)}")
    others = [entry.what for entry in found.faults if entry.verdict == OTHER]
    if others:
        parts.append(f"the same verdict from other numbers: {', '.join(others)}")
    unchecked = [label for label, record in found.records.items() if not record.checks]
    if unchecked:
        parts.append(f"not checked in {' and '.join(unchecked)}")
    return f"Public faults of MLX: {'; '.join(parts)}"


def _page(found: Devices) -> Iterator[Section]:
    labels = list(found.records)
    differing = [(name, *map(_cut, texts)) for name, differs, texts in found.facts if differs]
    note = [] if differing else ["Machine, system and software are the same."]
    yield Section("Machine and software", note, ("fact", *labels), differing)
    readings = list(zip(labels, found.readings, strict=True))
    yield Section(
        "Which known devices each behaves like",
        ["Judged by what is measured, never by the name of the chip."],
        ("device", "behaves"),
        readings,
    )
    for group in GROUPS:
        rows = [entry for entry in found.of_group(group) if entry.verdict in (DIFFERS, OTHER)]
        counts = found.counts(group)
        if counts:
            words = [f"{counts[each]} {each}" for each in (DIFFERS, OTHER, PARTLY, NEAR, SAME) if counts[each]]
            total = sum(counts.values())
            notes = [f"{total} behaviour{'s' if total != 1 else ''}: {', '.join(words)}."]
            if group == RANDOM:
                notes.append("The check random_normal, below, compares the bits of normal numbers.")
            yield _section(group, notes, found, rows, folded=len(rows) > _LONG)
    rows = [entry for entry in found.faults if entry.verdict != SAME]
    titled = [
        Entry("", f"{entry.what}: {entry.group}", [a or MISSING for a in entry.answers], entry.verdict)
        for entry in [*rows, *(entry for entry in found.faults if entry.verdict == SAME)]
    ]
    yield _section("Faults of MLX that were reported in public", [_faults(found) + "."], found, titled)
    yield _section(
        "Claims",
        ["Verdicts that differ come first."],
        found,
        [Entry("", f"{e.what}: {e.group}", e.answers, e.verdict) for e in found.claims],
    )
    about = "The verdict on S6 of each operation, by the narrowest width measured in it; those that differ come first."
    yield _section("Operations", [about], found, found.operations, folded=True)
    partly = [entry for entry in found.behaviours if entry.verdict == PARTLY]
    if partly:
        yield _section("Behaviours that were not measured on every device", [], found, partly, folded=True)
    alike = [entry for entry in found.behaviours if entry.verdict in (NEAR, SAME)]
    about = f"Numbers that differ by less than one bit or a factor of two are {NEAR}."
    yield _section("Behaviours that are the same or nearly the same", [about], found, alike, folded=True)
    same = [(name, _cut(texts[0])) for name, differs, texts in found.facts if not differs]
    yield Section("Facts that are the same", (), ("fact", "value"), same, folded=True)


def _section(
    title: str, notes: Sequence[str], found: Devices, entries: Sequence[Entry], folded: bool = False
) -> Section:
    rows = [(e.what, *(_cut(answer or MISSING) for answer in e.answers), e.verdict) for e in entries]
    columns = ("what", *found.records, "verdict")
    return Section(title, notes, columns, rows, folded=folded and bool(rows), searched=len(rows) > 8)


def _cut(text: str) -> str:
    """A text as a cell holds it; summary.json has all of it."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def summary(found: Devices) -> dict[str, Any]:
    """summary.json of the comparison, with the words of the page."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "devices",
        "devices": {
            label: {
                "schema_version": record.schema_version,
                "created": record.created,
                "device": record.environment.get("device"),
                "backend": record.environment.get("backend"),
                "mlx": record.environment.get("mlx"),
                "behaves": reading,
            }
            for (label, record), reading in zip(found.records.items(), found.readings, strict=True)
        },
        "equal": found.is_equal,
        "answers": answers(found),
        "differs": {name: _by_label(found, texts) for name, differs, texts in found.facts if differs},
        "groups": {group: dict(found.counts(group)) for group in GROUPS if found.of_group(group)},
        "behaviours": [_entry(found, e) | {"group": e.group} for e in found.behaviours if e.verdict != SAME],
        "faults": [_entry(found, e) | {"title": e.group} for e in found.faults],
        "operations": [_entry(found, e) for e in found.operations if e.verdict != SAME],
        "claims": [_entry(found, e) | {"text": e.group} for e in found.claims],
    }


def _entry(found: Devices, entry: Entry) -> dict[str, Any]:
    return {"what": entry.what, "verdict": entry.verdict, "answers": _by_label(found, entry.answers)}


def _by_label(found: Devices, texts: Sequence[str | None]) -> dict[str, str | None]:
    return dict(zip(found.records, texts, strict=True))
