"""The page on runs beside each other, its tables as files, and a strict summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from precision_lab.analysis.across import Across, Beside
from precision_lab.analysis.alike import Difference
from precision_lab.analysis.changes import Change
from precision_lab.analysis.exactness import Outcomes
from precision_lab.analysis.pairing import summed_up
from precision_lab.report import compared_files, sections
from precision_lab.report.compared_pictures import pictures
from precision_lab.report.figures import across as figures
from precision_lab.report.figures.labels import shorten
from precision_lab.report.headline import PICTURES
from precision_lab.report.sections import Section, text
from precision_lab.report.wording import MISSING

MOST_ROWS = 1000
_LONGEST = 160
_NAMED, _SHORT = 3, 60
_WORDS = ("variant", "run", "dtype", "techniques", "error")
"""The columns of the variants that hold no numbers."""

_TITLES = {
    "latent_rel_l2": "final rel. L2",
    "num_nonfinite": "non-finite values",
    "amax_final": "final amax",
    "psnr_db": "PSNR in dB",
    "ssim": "SSIM",
    "weight_bytes": "bytes of weights",
    "bits_per_weight": "bits a weight",
    "step_s": "step in s",
    "peak_memory_bytes": "peak memory in bytes",
}
_CHANGED = (
    "For each variant, the first array in order of execution that differs from the base's, and the first that "
    "differs by more than rounding explains. Only recorded arrays are compared: the change arose in that operation, "
    "or in an operation without a record after the last equal array. Size: the larger relative difference of amax "
    "and rms, in units of rounding of the coarser dtype."
)


def write(found: Across, folder: Path) -> Path:
    """Writes compare.html, figures, tables and summary.json into `folder`; returns the page's path."""
    compared_files.write(found, folder)
    facts = [f"{len(found.runs)} runs", f"base: {found.base}"]
    with sections.theme():
        drawings = [figures.draw_growth(found), figures.draw_differences(found)]
        title = f"{' and '.join(found.runs)}" if len(found.runs) == 2 else f"{len(found.runs)} runs"
        return sections.write(folder, f"Comparison of {title}", facts, answers(found), list(_page(found)), drawings)


def answers(found: Across) -> list[str]:
    """The short answer in sentences, for the terminal and the top of the page."""
    lines = [run.standing and f"{label}: {run.standing}" for label, run in found.runs.items()]
    lines = [line for line in lines if line]
    changed = sum(differs for _, differs, _ in found.facts)
    lines.append(f"{changed} of {len(found.facts)} facts on configuration, checkpoint and environment differ")
    for label, beside in found.beside.items():
        lines.append(f"{label}: {beside.pairing.words}")
        if beside.why:
            lines.append(f"{label}: arrays are not compared one by one, because {beside.why}; only peaks of ranges are")
        elif beside.is_equal:
            arrays = sum(change.compared for change in beside.changes)
            results = sum(each.compared for each in beside.digests.values())
            known = f", and {results} of {results} results have equal digests" if results else ""
            lines.append(f"{label}: equal to the base to the bit, in every number recorded of {arrays} arrays{known}")
        else:
            lines += [f"{label}: {_said(change, beside)}" for change in beside.changes]
        lines += [f"{label}: {line}" for line in _sketched(beside)]
    verdicts = found.claims[found.claims["changed"].astype(bool)]
    lines += [f"claim {row['id']}: {_verdicts(found, row)}" for row in verdicts.to_dict("records")]
    return lines


def _said(change: Change, beside: Beside) -> str:
    digests = beside.digests.get(change.variant)
    ending = _results(digests)
    if change.first is None:
        words = f"{change.variant} is equal in every number recorded of {change.compared} arrays{ending}"
        if digests is not None and digests.first is not None:
            words += f"; the change moves no recorded number; {_cause(change.variant, beside)}"
        return words
    words = f"{change.variant} changed first at {where(change.first)}: {change.first['what']}{size(change.first)}; "
    words += f"equal until {change.first['before']}; " if change.first["before"] else "no array before it is equal; "
    words += f"{_cause(change.variant, beside)}; {change.equal} of {change.compared} arrays are equal{ending}"
    later = change.first_beyond
    if later is None:
        return f"{words}; no array differs by more than rounding explains"
    if later != change.first:
        words += f"; beyond rounding first at {where(later)}{size(later)}"
    return words


def _results(digests: Outcomes | None) -> str:
    """How many results have equal digests."""
    if digests is None:
        return ""
    first = (
        ""
        if digests.first is None or not digests.equal
        else f", not that of prompt {digests.first[0]}, seed {digests.first[1]}"
    )
    return f", and {digests.equal} of {digests.compared} results are equal to the bit{first}"


def _cause(variant: str, beside: Beside) -> str:
    """What of the configuration of a variant differs; if nothing, what of machine and software."""
    configured = beside.configured.get(variant, ())
    if configured:
        return f"its configuration differs: {_listed(configured)}"
    if beside.expects_equality:
        return "although configuration, machine, commit and software are the same"
    if beside.environment:
        return f"with the same configuration, but another machine or software: {_listed(beside.environment)}"
    return "with the same configuration, machine and software, but not from one known commit without changes"


def _listed(found: Sequence[Difference]) -> str:
    named = [f"{each.what} {shorten(each.first, _SHORT)} and {shorten(each.second, _SHORT)}" for each in found[:_NAMED]]
    more = f", and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{', '.join(named)}{more}"


def _sketched(beside: Beside) -> list[str]:
    """What the sketches of pinned cases say."""
    found = beside.sketched
    if found is None:
        return []
    if found.first is None:
        return [f"pinned cases: all {found.compared} sketches are equal"]
    first = found.first
    until = f"equal until {first['before']}" if first["before"] else "no array before it is equal"
    moment = ", ".join(str(part) for part in (first["case"], f"step {first['step']}", first["branch"]) if part)
    size = f", by about {text(first['rel_l2'])} relative L2" if first["rel_l2"] is not None else ""
    counts = f"{found.equal} of {found.compared} sketches are equal"
    return [f"pinned cases changed first at {first['site']} ({moment}){size}; {until}; {counts}"]


def where(change: Mapping[str, Any]) -> str:
    """The address with its moment."""
    parts = [change["site"], change["step"] is not None and f"step {change['step']}", change["branch"]]
    parts += [f"prompt {change['prompt_id']}", f"seed {change['seed']}"]
    return ", ".join(str(part) for part in parts if part)


def size(change: Mapping[str, Any]) -> str:
    """The size of a change in units of rounding."""
    if change["units"] is None:
        return ""
    return f", {text(change['units'])} units of rounding ({text(change['relative'])} relative)"


def _verdicts(found: Across, row: Mapping[Any, Any]) -> str:
    return ", ".join(f"{row[f'verdict {label}'] or 'not stated'} in {label}" for label in found.runs)


def _page(found: Across) -> Iterator[Section]:
    labels = list(found.runs)
    differing = [(name, *map(_cut, texts)) for name, differs, texts in found.facts if differs]
    equal = [(name, _cut(texts[0])) for name, differs, texts in found.facts if not differs]
    note = [] if differing else ["Configuration, checkpoint, versions and environment are the same."]
    many = len(differing) > 12
    yield Section("What is not alike", note, ("fact", *labels), differing, folded=many, searched=many)
    yield Section("What is the same", (), ("fact", "value"), equal, folded=True)
    rows = [row for label, beside in found.beside.items() for row in _change_rows(label, beside)]
    notes = [
        _CHANGED,
        *(
            f"{label}: not compared one by one, because {beside.why}."
            for label, beside in found.beside.items()
            if beside.why
        ),
    ]
    columns = (
        "variant",
        "run",
        "arrays",
        "equal",
        "changed first at",
        "what",
        "units",
        "last equal before",
        "beyond rounding first at",
        "units",
        "beyond",
    )
    yield Section("What changed first", notes, columns, rows, frozenset({2, 3, 6, 9, 10}))
    if len(found.claims):
        rows = [
            (
                str(r["text"]),
                *(f"{r[f'verdict {n}'] or MISSING} ({text(r[f'effect {n}'])})" for n in labels),
                "changed" if r["changed"] else "",
            )
            for r in found.claims.to_dict("records")
        ]
        yield Section(
            "Verdicts of claims", ["Verdict and effect; changed verdicts first."], ("claim", *labels, "change"), rows
        )
    yield from _variants(found.variants.dropna(axis="columns", how="all"))
    yield from pictures(found)
    yield from _ranges(found)


def _variants(table: pd.DataFrame) -> Iterator[Section]:
    """The numbers of the variants, those that judge their values first; pictures have a table of their own."""
    of_pictures = [name for name in PICTURES if name in table]
    first = [name for name in (*_WORDS, "latent_rel_l2", "num_nonfinite") if name in table]
    rest = [name for name in table if name not in (*first, *of_pictures)]
    measures = {name: PICTURES[name][0] for name in of_pictures}
    yield _numbers("Variants", "Each run over its own cases.", table[[*first, *rest]], _TITLES)
    if of_pictures:
        words = "Beside the reference's picture of the same prompt and seed, medians over the cases of a run."
        yield _numbers("Measures of the pictures", words, table[[*first[:2], *of_pictures]], measures)


def _numbers(title: str, note: str, table: pd.DataFrame, titles: Mapping[str, str]) -> Section:
    columns = [titles.get(str(name), str(name).replace("_", " ")) for name in table]
    cells = [tuple(text(value) for value in row) for row in table.itertuples(index=False)]
    numeric = frozenset(at for at, name in enumerate(table) if name not in _WORDS)
    return Section(title, [note], columns, cells, numeric, searched=True)


def _cut(fact: str) -> str:
    """A fact as a cell holds it; facts.csv has all of it."""
    return fact if len(fact) <= _LONGEST else f"{fact[:_LONGEST]}…"


def _change_rows(label: str, beside: Beside) -> Iterator[tuple[str, ...]]:
    for change in beside.changes:
        first, later = change.first, change.first_beyond
        yield (
            change.variant,
            label,
            text(change.compared),
            text(change.equal),
            where(first) if first else "equal",
            first["what"] if first else MISSING,
            text(first["units"]) if first else MISSING,
            (first["before"] or "none") if first else MISSING,
            where(later) if later else MISSING,
            text(later["units"]) if later else MISSING,
            text(change.beyond),
        )


def _ranges(found: Across) -> Iterator[Section]:
    for label, beside in found.beside.items():
        left = summed_up(found.runs[found.base].layout, beside.pairing.left)
        right = summed_up(found.runs[label].layout, beside.pairing.right)
        rows = [(name, "base", text(count)) for name, count in left.items()]
        rows += [(name, label, text(count)) for name, count in right.items()]
        if rows:
            note = f"{beside.pairing.words}. The settings names= and blocks= decide what corresponds."
            yield Section(
                f"Arrays of {label} without a counterpart",
                [note],
                ("array", "recorded in", "number"),
                rows,
                frozenset({2}),
                folded=True,
            )
        table = beside.peaks.assign(by=-beside.peaks["log2_ratio"].abs().fillna(-1))
        table = table.sort_values(["by"], kind="stable")
        cells = [
            (
                str(r["base"]),
                str(r["variant"]),
                str(r["other"]) if r["other"] != r["base"] else "same",
                str(r["dtype"]),
                str(r["dtype_other"]),
                *(text(r[name]) for name in ("amax", "amax_other", "log2_ratio")),
                text(int(r["nonfinite_change"])),
            )
            for r in table.head(MOST_ROWS).to_dict("records")
        ]
        some = (
            f" The {MOST_ROWS} largest changes of {len(table)} are listed; sites.parquet has all."
            if len(table) > MOST_ROWS
            else ""
        )
        note = f"The largest amax of an array over all cases, steps and branches: log2 of {label} over the base.{some}"
        columns = (
            "array",
            "variant",
            f"in {label}",
            "dtype",
            f"dtype of {label}",
            "amax",
            f"amax of {label}",
            "change in bits",
            "non-finite",
        )
        yield Section(f"Ranges of {label}", [note], columns, cells, frozenset({5, 6, 7, 8}), folded=True, searched=True)
