"""The page on a search for culprits: what was found, why each is needed, the validation, and all trials."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from precision_lab.errors import InputError, first_line
from precision_lab.record.culprits import TECHNIQUE, TRIALS, Culprits, Outcome
from precision_lab.record.files import RESTORE, write_text, writing
from precision_lab.record.manifest import Manifest
from precision_lab.report.figures import culprits_search, style
from precision_lab.report.rendering import embed, render, weights_text
from precision_lab.report.wording import number

PAGE = "report.html"
HEADINGS = ("found", "group", "sites", "without it")
TRIAL_HEADINGS = (
    *("run", "stage", "spared", "holds", "value", "prompt", "seed", "steps", "rel. L2", "PSNR, dB"),
    *("first non-finite value", "step", "weights, GB"),
)


def write(folder: Path) -> tuple[Path, Culprits]:
    """Writes `report.html` and its figure into the folder of a search; returns the page's path and the result.

    Raises InputError for a folder without a finished search, or with a damaged file. The same files give the same page.
    """
    manifest, found, trials = Manifest.read(folder), Culprits.read(folder), _trials(folder)
    figures_folder = folder / "figures"
    with writing(figures_folder):
        figures_folder.mkdir(exist_ok=True)
    with style.theme():
        figures = embed([culprits_search.draw(trials, found)], figures_folder)
    page = folder / PAGE
    content = render(
        "culprits.html",
        manifest=manifest,
        weights_text=weights_text(manifest.checkpoint),
        found=found,
        title=title(found),
        statements=statements(found),
        headings=HEADINGS,
        rows=cells(found),
        command=command(folder, found) if found.techniques else "",
        trial_headings=TRIAL_HEADINGS,
        trials=[_row(row) for row in trials.to_dict("records")],
        figures=figures,
    )
    write_text(page, content)
    return page, found


def title(found: Culprits) -> str:
    """What the search was for."""
    return f"Groups that must be spared, so that {found.criterion} ({found.altered} elsewhere)"


def cells(found: Culprits) -> list[tuple[str, ...]]:
    """The culprits as text, under `HEADINGS`."""
    return [(str(each.found), each.group, " ".join(each.sites), described(each.without)) for each in found.culprits]


def described(outcome: Outcome) -> str:
    """What a trial came to: the value that the criterion compares, or where the first value was not finite."""
    if outcome.first_site is not None:
        step = "" if outcome.first_step is None else f", step {outcome.first_step}"
        return f"non-finite at {outcome.first_site}{step}"
    if outcome.value is not None:
        return number(outcome.value)
    return "finite" if outcome.finite else "non-finite"


def statements(found: Culprits) -> list[str]:
    """The result in sentences: what was found, how surely, and what the validation says."""
    nothing, everything = described(found.nothing_spared), described(found.all_spared)
    ends = f"With nothing spared: {nothing}; with everything spared: {everything}."
    if found.status == "nothing":
        return [f"Nothing to find: {found.criterion} with {found.altered} at all {found.groups} groups.", ends]
    if found.status == "impossible":
        return [f"No set will do: it does not hold that {found.criterion} even with all groups spared.", ends]
    count = len(found.culprits)
    searched = (
        f"{count} of {found.groups} groups must be spared. {found.runs} runs found them (at most {found.bound} for as "
        f"many under a monotone criterion), and {found.checks} further runs tested whether the "
        "criterion is monotone and what else will do."
    )
    lines = [
        searched,
        _minimality(found),
        ends,
    ]
    validation = found.validation
    if validation is None:
        return [*lines, "The set was not validated on cases that the search had not seen."]
    where = f"{validation.cases} case{'s' * (validation.cases != 1)} that the search had not seen"
    if validation.holds:
        return [*lines, f"Validated on {where}: it holds ({described(validation.outcome)})."]
    failing = f", for {'; '.join(validation.failing)}" if validation.failing else ""
    return [*lines, f"NOT CONFIRMED on {where}: it fails there{failing} ({described(validation.outcome)})."]


def _minimality(found: Culprits) -> str:
    each = "Without any one of them, with the others spared, it was run and does not hold."
    if found.fallback or found.violations:
        method = ", so that delta debugging found the set" if found.fallback else ""
        pairs = f"{found.violations} pair{'s' * (found.violations != 1)} of runs"
        contradict = f"{pairs} contradict{'s' * (found.violations == 1)} it"
        each = f"{each} The criterion is not monotone ({contradict}){method}: {_subsets(found)}"
    else:
        if found.left_out >= len(found.culprits):
            each = (
                f"{each} Neither does any other proper subset: all were run. No run contradicts a monotone criterion."
            )
        else:
            each = f"{each} No run contradicts a monotone criterion, under which no proper subset will do."
        if found.is_only:
            each = f"{each} It is the only minimal set: nothing else can stand in for any of them."
    return " ".join((each, *_replacements(found)))


def _subsets(found: Culprits) -> str:
    """What the runs of subsets show where the criterion is not monotone."""
    if found.left_out >= len(found.culprits):
        return "every proper subset was run, and none holds, but other sets may be smaller."
    if found.left_out > 1:
        return f"no subset without up to {found.left_out} of them holds, but smaller ones were not run."
    return "it is 1-minimal, and smaller sets may exist."


def _replacements(found: Culprits) -> list[str]:
    """Which groups of the set are not needed by every set that will do."""
    replaceable = [each for each in found.culprits if each.can_be_replaced]
    if not replaceable and found.is_only is False:  # of a search of an older version
        return ["It is not the only one: with everything else spared, one of them can be left out."]
    single = [f"{each.instead} will do in place of {each.group}" for each in replaceable if each.instead]
    several = [each.group for each in replaceable if not each.instead]
    lines = [f"It is not the only one: {'; '.join(single)}."] if single else []
    if several:
        names = ", ".join(several)
        lines.append(
            f"With everything else spared, {names} can be left out; no single group was found that replaces it."
        )
    return lines


def command(folder: Path, found: Culprits) -> str:
    """The command that runs what was found as a variant, with the model of the search."""
    manifest = Manifest.read(folder)
    of_model = (word for word in manifest.command if word.startswith(("model=", "model.")))
    chosen = [word for word in of_model if not word.startswith("model.path=")]
    words = ["--config-dir", str(folder), *chosen, f"model.path={manifest.checkpoint.path}", f"dtype={found.dtype}"]
    return " ".join(("python -m precision_lab", *map(shlex.quote, words), f"technique={TECHNIQUE}"))


def _trials(folder: Path) -> pd.DataFrame:
    path = folder / TRIALS
    try:
        return pd.read_parquet(path)
    except Exception as error:  # of a damaged file, Arrow and pandas raise whatever the bytes lead to
        raise InputError(f"{path} is not a table that can be read: {first_line(error)}. {RESTORE}") from error


def _row(row: Mapping[Any, Any]) -> tuple[str, ...]:
    """A trial as text, under `TRIAL_HEADINGS`."""
    known = {str(key): None if pd.isna(value) else value for key, value in row.items()}
    return (
        *(str(known["run"]), str(known["stage"]), str(known["spared"]), "yes" if known["holds"] else "no"),
        *(number(known["value"]), str(known["prompt_id"]), str(known["seed"]), str(known["steps"])),
        *(number(known["rel_l2"]), number(known["psnr_db"]), known["first_site"] or ""),
        *(number(known["first_step"]), number(known["weights_gb"])),
    )
