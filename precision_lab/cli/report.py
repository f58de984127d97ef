"""`report run=DIR`: judges the tables of a run again and draws its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from precision_lab.cli.progress import open_console
from precision_lab.errors import InputError


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Writes summary.json, figures and report.html of an existing run; the exit code of its verdicts."""
    if not config.run:
        raise InputError("report needs run=DIR, the folder of a run")
    return judge_and_draw(Path(config.run), open_console())


def judge_and_draw(run: Path, console: Console) -> int:
    """Verdicts and report of a run's tables; prints the table of variants and the path of the page."""
    from precision_lab import report
    from precision_lab.analysis.summary import exit_code, summarize
    from precision_lab.cli.summary import print_summary

    summary = summarize(run)
    page = report.write(run)
    print_summary(summary, console)
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
    return exit_code(run, summary)
