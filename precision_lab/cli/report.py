"""`report run=DIR` judges a run again and draws its report, or draws that of a scan, of a search or of `survival`;
`report runs=DIR` and `report sweep=DIR` draw the index of many runs, and `report history=FILE` a gate's history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich.console import Console

from precision_lab.cli import report_formats as reports
from precision_lab.cli.terminal import open_console, print_table
from precision_lab.device import blas
from precision_lab.errors import InputError
from precision_lab.record.beside import process_beside
from precision_lab.record.folders import given_folder, user_path

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    from precision_lab.record.run import Run


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Writes the report of an existing run and returns the exit code of its verdicts; or draws a sweep or a history."""
    blas.one_thread_for_numpy()  # first: the next import brings NumPy
    from precision_lab.cli import schema

    settings = schema.read(schema.Report, config)
    given = [name for name in ("run", "runs", "sweep", "history") if getattr(settings, name)]
    if len(given) != 1:
        raise InputError(
            "report needs run=DIR, the folder of a run, runs=DIR, a folder of runs, sweep=DIR, the folder of a sweep, "
            "or history=FILE, the table of a gate; one of them"
        )
    if settings.out is not None and given[0] in ("run", "sweep"):
        raise InputError(f"report {given[0]}=DIR writes into that folder; out= belongs to runs= and history=FILE")
    if settings.runs:
        from precision_lab.cli.runs_index import draw_runs

        draw_runs(settings.runs, settings.out, settings.format)
        return 0
    if settings.run:
        return _report_run(user_path(settings.run), settings.format)
    if settings.sweep:
        from precision_lab.cli.sweep_index import draw_index, planned

        folder = user_path(settings.sweep)
        if settings.format == "badge":
            raise InputError(f"format=badge: {folder} holds a sweep, which has the formats html and md")
        draw_index(folder, open_console(), planned(folder), whole=True, form=settings.format)
        return 0
    history = user_path(str(settings.history))
    out = history.parent if settings.out is None else given_folder(settings.out)
    if settings.format == "html":
        draw_history(history, out, open_console())
    else:
        reports.of_history(history, out, settings.format)
    return 0


def _report_run(folder: Path, form: str) -> int:
    from precision_lab.record import manifest, sweep

    if (folder / sweep.PLAN).is_file() and not (folder / manifest.FILE).exists():
        raise InputError(f"{folder} is the folder of a sweep, expected that of a run. Did you mean sweep={folder}?")
    if form != "html":
        return reports.write(folder, reports.kind_of(folder), form)
    with process_beside(folder, "precision_lab.report") as beside:  # before the imports, which both need
        kind = reports.kind_of(folder)
        if kind == "run":
            from precision_lab.record.run import Run

            return _judge_and_draw(Run.open(folder), open_console(), beside)
    _drawing(kind)(folder, open_console())
    return 0


def _drawing(kind: str) -> Callable[[Path, Console], None]:
    """What draws the page on results that are no run."""
    if kind == "scan":
        from precision_lab.cli.sensitivity import draw_scan

        return draw_scan
    if kind == "culprits":
        from precision_lab.cli.culprits import draw

        return draw
    if kind == "survival":
        from precision_lab.cli.survival import draw as draw_survival

        return draw_survival
    from precision_lab.cli.searched import draw_search

    return draw_search


def judge_and_draw(run: Run, console: Console) -> int:
    """Verdicts and report of a run's tables; prints the table of variants and the path of the page.

    Raises InputError that names the file if one is missing or damaged; then nothing was written.
    """
    with process_beside(run.path, "precision_lab.report") as beside:
        return _judge_and_draw(run, console, beside)


def _judge_and_draw(run: Run, console: Console, beside: ProcessPoolExecutor | None) -> int:
    from precision_lab import report
    from precision_lab.analysis.summary import failures, summarize
    from precision_lab.cli.summary import print_summary

    run.whole()
    summary = summarize(run, beside)
    page = report.write(run, beside)
    print_summary(summary, run.layout, console)
    if run.standing:
        console.print(run.standing, markup=False, highlight=False, soft_wrap=True)
    reasons = failures(run, summary)
    for reason in reasons:
        console.print(f"exit code 1: {reason}", soft_wrap=True)
    console.print(f"report: {page}", soft_wrap=True)
    return int(bool(reasons))


def draw_history(path: Path, out: Path, console: Console) -> None:
    """Draws page and figures of a gate's history into `out`; prints a line for each commit at which ranges stepped."""
    from precision_lab.analysis.history import read, steps
    from precision_lab.report.history import changes, write

    history = read(path)
    found = steps(history)
    page = write(history, found, path.stem, out)
    rows = [
        (change.commit, str(change.count), change.sites[0]["address"], change.sites[0]["step"])
        for change in changes(history, found)
    ]
    if rows:
        title = f"Steps in {len(history.runs)} gate runs"
        print_table(console, ("commit", "series", "the largest", "bits"), rows, title, folding=("the largest",))
    else:
        console.print(f"No steps in {len(history.runs)} gate runs")
    console.print(f"report: {page}", soft_wrap=True)
