"""The forms of a report other than its page: Markdown for a pull request, and a badge."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from precision_lab.cli.terminal import open_console
from precision_lab.errors import InputError

if TYPE_CHECKING:
    from precision_lab.report.badge import Badge

NAMES = {
    "run": "the run of an experiment",
    "scan": "a scan of sensitivity",
    "culprits": "a search for culprits",
    "survival": "a result of survival",
    "search": "a search for recipes",
    "history": "a gate's history",
}
"""The kinds of results that have a report, in words."""

_WITH_BADGE = ("run", "survival")


def kind_of(folder: Path) -> str:
    """What a folder holds, one of NAMES; "run" also for a folder that holds nothing."""
    from precision_lab.record.culprits import holds_culprits
    from precision_lab.record.scan import holds_scan
    from precision_lab.record.search import holds_search
    from precision_lab.record.survival import holds_survival

    tests = {"scan": holds_scan, "culprits": holds_culprits, "survival": holds_survival, "search": holds_search}
    return next((kind for kind, holds in tests.items() if holds(folder)), "run")


def write(folder: Path, kind: str, form: str) -> int:
    """Writes and prints a report in Markdown, or writes a badge; returns the exit code of the verdicts.

    Only the Markdown goes to standard output. Raises InputError for a form that the kind does not have.
    """
    _check(kind, form, folder)
    if kind == "run":
        return _write_run(folder, form)
    if form == "badge":
        _leave_badge(_badge_of_survival(folder), folder)
    else:
        from precision_lab.report.markdown import FILE

        leave_markdown(_MARKDOWN[kind](folder), folder / FILE)
    return 0


def of_history(path: Path, out: Path, form: str) -> None:
    """Writes and prints a gate's history in Markdown. Raises InputError as `write` does."""
    _check("history", form, path)
    from precision_lab.analysis.history import read, steps
    from precision_lab.report.markdown import of_history

    log = read(path)
    text = of_history(log, steps(log), out / f"{path.stem}.html")
    leave_markdown(text, out / f"{path.stem}.md")


def _check(kind: str, form: str, place: Path) -> None:
    forms = ("html", "md", *(("badge",) if kind in _WITH_BADGE else ()))
    if form not in forms:
        raise InputError(f"format={form}: {place} holds {NAMES[kind]}, which has the formats {' and '.join(forms)}")


def _write_run(folder: Path, form: str) -> int:
    from precision_lab.analysis.summary import failures, summarize
    from precision_lab.record.gate import GateVerdict
    from precision_lab.record.run import Run
    from precision_lab.report import badge, markdown

    run = Run.open(folder).whole()
    judged = GateVerdict.read(folder)
    summary = summarize(run)
    reasons = failures(run, summary)
    if form == "badge":
        _leave_badge(badge.of_run(run.manifest, summary.claims, reasons, judged), folder)
    else:
        leave_markdown(markdown.of_run(run, summary, reasons), folder / markdown.FILE)
    _say(*(f"exit code 1: {reason}" for reason in reasons))
    return int(bool(reasons))


def _scan(folder: Path) -> str:
    from precision_lab.record.scan import Scan
    from precision_lab.report import markdown

    return markdown.of_scan(Scan.open(folder))


def _search(folder: Path) -> str:
    from precision_lab.record.search import Search
    from precision_lab.report import markdown

    return markdown.of_search(Search.open(folder))


def _culprits(folder: Path) -> str:
    from precision_lab.report import markdown

    return markdown.of_culprits(folder)


def _survival(folder: Path) -> str:
    from precision_lab.report import markdown, survival

    return markdown.of_survival(survival.judged(folder), folder)


_MARKDOWN: dict[str, Callable[[Path], str]] = {
    "scan": _scan,
    "search": _search,
    "culprits": _culprits,
    "survival": _survival,
}


def _badge_of_survival(folder: Path) -> Badge:
    from precision_lab.report import badge, survival

    view = survival.judged(folder)
    return badge.of_claims(view.found.experiment, view.found.checkpoint, view.claims)


def leave_markdown(text: str, path: Path) -> None:
    """Writes the file, then prints the same text, so that nothing is printed where the file cannot be written."""
    from precision_lab.record.files import write_text

    write_text(path, text)
    sys.stdout.write(text)
    _say(f"report: {path}")


def _leave_badge(badge: Badge, folder: Path) -> None:
    from precision_lab.report.badge import write

    svg, _ = write(badge, folder)
    _say(f"badge: {svg}, badge.json ({badge.title})")


def _say(*lines: str) -> None:
    console = open_console(stderr=True)
    for line in lines:
        console.print(line, soft_wrap=True)
