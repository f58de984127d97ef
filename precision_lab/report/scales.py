"""The page on chosen scales: what was chosen, how the held-out cases did, and other variants beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from precision_lab.analysis.scales.evidence import Evidence
from precision_lab.record.files import write_text, writing
from precision_lab.record.manifest import Checkpoint
from precision_lab.report.figures import scales as figures
from precision_lab.report.figures import style
from precision_lab.report.rendering import embed, render, weights_text
from precision_lab.report.wording import MISSING, fixed, interval, number

PAGE = "scales.html"
HEADINGS = (
    *("variant", "cases that overflow, by arithmetic", "least headroom, bits", "cases not finite", "drift"),
    *("scales / variant", "verdict"),
)
FOLDING = ("cases that overflow, by arithmetic", "verdict")
_RECIPE = "scales"
_MOST = 8
"""The most lines of one kind; the tables have all."""


def write(evidence: Evidence, folder: Path) -> Path:
    """Writes the page and its figures into the folder of the command; returns the path of the page."""
    drawn = folder / "figures"
    with writing(drawn):
        drawn.mkdir(parents=True, exist_ok=True)
    with style.theme():
        embedded = embed([figures.draw_scales(evidence), figures.draw_headroom(evidence)], drawn)
    about = evidence.about
    page = folder / PAGE
    text = render(
        "scales.html",
        about=about,
        title=title(evidence),
        manifest={**about, "started": None},  # of several runs
        weights_text=weights_text(Checkpoint(**about["checkpoint"])),
        headings=HEADINGS,
        rows=rows(evidence),
        remarks=remarks(evidence),
        figures=embedded,
    )
    write_text(page, text)
    return page


def title(evidence: Evidence) -> str:
    """What was chosen, from how many cases, and on which weights."""
    about = evidence.about
    return (
        f"{about['format']} with {_bits(about)} of margin, from {_cases(about, 'coverage')}; "
        f"{_cases(about, 'heldout')} held out ({about['checkpoint']['name']}, {about['checkpoint']['weights']})"
    )


def comment(evidence: Evidence) -> list[str]:
    """Two lines above the recipe: how it was chosen, and what the held-out cases said."""
    about, own = evidence.about, evidence.about["variants"][_RECIPE]
    chosen = f"power-of-two scales for {about['format']} with {_bits(about)} of margin"
    cases = f"Chosen from {_cases(about, 'coverage')} on {about['checkpoint']['name']}"
    tried = f"not finite in {own['not_finite']} of {_cases(about, 'heldout')} held out"
    return [
        f"{chosen}; run it with dtype={about['format']}",
        f"{cases} ({about['checkpoint']['fingerprint'][:12]}); {tried}.",
    ]


def _bits(about: Mapping[str, Any]) -> str:
    return f"{about['margin_bits']:g} bit{'' if about['margin_bits'] == 1 else 's'}"


def _cases(about: Mapping[str, Any], kind: str) -> str:
    count = about["cases"][kind]
    return f"{count} case{'' if count == 1 else 's'}"


def rows(evidence: Evidence) -> Sequence[tuple[str, ...]]:
    """A row for each variant: in how many held-out cases it fails, and its drift beside that of the chosen scales."""
    count = evidence.about["cases"]["heldout"]
    found = []
    for name, row in evidence.about["variants"].items():
        cells = (
            str(name),
            f"{row['overflows']:g} of {count}" if "overflows" in row else MISSING,
            fixed(row.get("headroom_bits"), 2),
            f"{row['not_finite']} of {count}",
            number(row.get("drift")),
            _ratio(row),
            "" if name == _RECIPE else _verdict(row),
        )
        found.append(cells)
    return found


def _ratio(row: Mapping[str, Any]) -> str:
    """The ratio of the drifts with its interval; nothing where a case is not finite."""
    if "ratio" not in row:
        return MISSING
    return f"{number(row['ratio'])} {interval([row['lo'], row['hi']])}" if "lo" in row else number(row["ratio"])


def _verdict(row: Mapping[str, Any]) -> str:
    words = {"supported": "scales drift no more: supported", "refuted": "scales drift no more: refuted"}
    verdict = words.get(row["verdict"], row["verdict"])
    return f"{verdict} ({row['reason']})" if row.get("reason") else verdict


def remarks(evidence: Evidence) -> list[str]:
    """What a person must know: the failures of the recipe, what no technique scales, headroom and underflow."""
    about = evidence.about
    lines = [_chosen(name, tables) for name, tables in about["techniques"].items()]
    wide = [name for name in about["recipe"] if name not in about["techniques"]]
    if wide:
        lines.append(f"In fp32, because no scale keeps them in range: {', '.join(wide)}.")
    if not about["recipe"]:
        lines.append(f"No scale is needed: everything that was recorded fits in {about['format']} with this margin.")
    own = [row for row in about["failures"] if row["variant"] == _RECIPE]
    for by, words in (("arithmetic", "By arithmetic, it overflows"), ("run", "In its run, it is not finite")):
        failed = [row for row in own if row["by"] == by]
        lines += [f"{words} in the held-out case {row['case']}: at {row['place']}." for row in failed[:_MOST]]
        if len(failed) > _MOST:
            lines.append(f"... and in {len(failed) - _MOST} more held-out cases.")
    if not own:
        lines.append("No held-out case fails, by arithmetic or in its run.")
    lines.append(
        f"Least headroom in the held-out cases: {fixed(about['least_headroom_bits'], 2)} bits by arithmetic, "
        f"{fixed(about['least_measured_bits'], 2)} bits measured. In finite cases the two differ by at most "
        f"{fixed(about['largest_difference_bits'], 3)} bits at any place."
    )
    lines.append(
        f"Underflow: the smallest rms of a scaled array is {fixed(about['least_normal_bits'], 1)} bits above the "
        "smallest normal number."
    )
    lines.append(_margin(about["margins"]))
    margin = f"not {about['margin_bits']:g}"
    return lines + [
        f"No technique scales {row['place']}: {fixed(row['headroom_bits'], 2)} bits of headroom, {margin}."
        for row in about["unscaled"][:_MOST]
    ]


def _chosen(name: str, tables: Mapping[str, Any]) -> str:
    """`scaled_attention: qkv 1 (0-11), 2 (12-59)`."""
    words = []
    for parameter, table in tables.items():
        if not isinstance(table, Mapping):
            words.append(f"{parameter} {table:g}")
            continue
        starts = [int(block) for block in table]
        parts = [f"{scale:g} from block {start}" for start, scale in zip(starts, table.values(), strict=True)]
        words.append(f"{parameter} {', '.join(parts)}")
    return f"{name}: {'; '.join(words)}."


def _margin(margins: Sequence[Mapping[str, Any]]) -> str:
    """Which margins would have been too small."""
    failed = [row for row in margins if row["failed"]]
    if not failed:
        least = margins[0]
        return (
            f"With no margin at all ({least['margin_bits']:g} bits), the scales would hold in all {least['cases']} "
            f"held-out cases; the least headroom is then {fixed(least['headroom_bits'], 2)} bits, at {least['place']}, "
            f"in {least['case']}."
        )
    most = failed[-1]
    return (
        f"Up to {most['margin_bits']:g} bits of margin fail by arithmetic: {most['failed']} of {most['cases']} "
        f"held-out cases, the worst {most['case']}, at {most['place']}."
    )
