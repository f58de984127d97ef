"""`report runs=...`: the index page of many runs, from a folder, a pattern or a list of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from precision_lab.cli.terminal import open_console, print_table
from precision_lab.errors import InputError, nearest, shown
from precision_lab.record.folders import given_folder, user_path

if TYPE_CHECKING:
    from precision_lab.report.entries import Collected

_MOST = 40
"""The number of runs that the terminal lists."""


def draw_runs(given: str | Sequence[str], out: str | None, form: str) -> None:
    """Writes the index of the runs that `given` names, and prints a row for each; or writes and prints it in Markdown.

    A run that is not finished or cannot be read is listed with its state. Raises InputError where there is no run at
    all; nothing is written then.
    """
    from precision_lab.record.collection import read

    folders, place = _found([given] if isinstance(given, str) else list(given), out)
    names = {os.path.relpath(folder, place).replace(os.sep, "/"): folder for folder in folders}
    members = read(names)
    if form == "badge":
        raise InputError("format=badge: runs= names many runs, which have the formats html and md")
    if form == "md":
        from precision_lab.cli.report_formats import leave_markdown
        from precision_lab.report import markdown
        from precision_lab.report.entries import collect

        text = markdown.of_index(collect(members, place), f"{len(members)} runs in {place.resolve().name}")
        leave_markdown(text, place / markdown.INDEX)
        return
    from precision_lab.report.index import write

    page, found = write(members, place, is_sweep=False)
    _print(found, open_console(), page)


def _found(given: Sequence[str], out: str | None) -> tuple[list[Path], Path]:
    """The folders of the runs, each once, and that of the index."""
    if not given or not all(given):
        raise InputError(f"report needs runs=DIR, a pattern such as runs=DIR/*, or runs=[A,B]; got {shown(given)}")
    from precision_lab.record.collection import find

    folders: dict[Path, Path] = {}
    for entry in given:
        path = user_path(entry)
        is_pattern = has_magic(entry) and not path.exists()
        matched = [Path(name) for name in glob(str(path))] if is_pattern else [path]
        own = [run for folder in matched if folder.is_dir() for run in find(folder)]
        if not own:
            raise InputError(f"runs: {_nothing(entry, path, matched, is_pattern)}")
        folders |= {run.resolve(): run for run in own}
    if len(given) == 1 and list(folders.values()) == [user_path(given[0])] and not out:
        raise InputError(f"runs={given[0]} is the folder of one run. Did you mean run={given[0]}?")
    return list(folders.values()), _place(given, list(folders), out)


def _nothing(entry: str, path: Path, matched: Sequence[Path], is_pattern: bool) -> str:
    if is_pattern:
        count = len(matched)
        return f"{entry} matches no folder with a run ({count} other file{'s' * (count != 1)} and folders)"
    if not path.exists():
        siblings = [each.name for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
        return f"{entry} is no folder. {nearest(path.name, siblings)}"
    return f"{entry} holds no run, and neither do the folders below it" if path.is_dir() else f"{entry} is no folder"


def _place(given: Sequence[str], runs: Sequence[Path], out: str | None) -> Path:
    """The folder of the index: `out`, the one folder that is given, or the nearest one that holds all runs."""
    if out is not None:
        return given_folder(out)
    only = user_path(given[0])
    if len(given) == 1 and only.is_dir() and only.resolve() not in runs:
        return only
    place = Path(os.path.commonpath([run.parent for run in runs]))
    if place == Path(place.anchor):
        raise InputError("runs: no folder but the root holds all of these. Give out=DIR, the folder of the index")
    here = Path.cwd()
    return Path(os.path.relpath(place, here)) if place.is_relative_to(here) else place


def _print(found: Collected, console: Console, page: Path) -> None:
    from precision_lab.report.wording import counted

    header = ("run", "experiment", "weights", "status", "claims", "drift", "remarks")
    rows = [
        (
            entry.name,
            entry.member.facts.experiment if entry.member.facts else "-",
            entry.weights or "-",
            entry.status,
            counted(entry.member.facts.verdicts) if entry.member.facts else "-",
            " to ".join(f"{end:.3g}" for end in dict.fromkeys(entry.drift)) if entry.drift else "-",
            "; ".join(entry.remarks),
        )
        for entry in found.entries
    ]
    print_table(console, header, rows[:_MOST], f"{len(rows)} runs", folding=("experiment", "claims", "remarks"))
    if len(rows) > _MOST:
        console.print(f"and {len(rows) - _MOST} more runs on the page", soft_wrap=True)
    console.print(f"report: {page}", soft_wrap=True)
