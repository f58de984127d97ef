"""The page on runs beside each other, its tables as files, and a strict summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from precision_lab.analysis.across import Across, Beside
from precision_lab.analysis.pairing import summed_up
from precision_lab.report import compared_files, sections
from precision_lab.report.compared_answers import answers, where
from precision_lab.report.compared_pictures import pictures
from precision_lab.report.figures import across as figures
from precision_lab.report.headline import PICTURES
from precision_lab.report.sections import Section, text
from precision_lab.report.wording import MISSING

MOST_ROWS = 1000
_LONGEST = 160
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
