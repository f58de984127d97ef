"""`sensitivity`: what each candidate does at each group of sites, from configuration to page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich.console import Console

from precision_lab.cli import schema
from precision_lab.cli.candidates import build_candidates
from precision_lab.cli.config import build_spec, spec_of
from precision_lab.cli.literal import settled
from precision_lab.cli.terminal import open_console, print_table
from precision_lab.device.environment import set_numeric_switches
from precision_lab.errors import InputError, nearest

if TYPE_CHECKING:
    from precision_lab.lab.outline import Progress
    from precision_lab.lab.scan_plan import ScanPlan, ScanSpec

_OF_CASES = ("prompts=", "seeds=")
_SHOWN = 5


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Scans, confirms the worst and the best by whole generations, and draws; prints them and the path of the page."""
    set_numeric_switches()
    config = settled(config)
    settings = schema.read(schema.Sensitivity, config)
    if settings.scan.cases is None:  # so that the configuration says it when the command line is gone
        named = any(argument.startswith(_OF_CASES) for argument in command)
        config.scan.cases = len(settings.prompts) * len(settings.seeds) if named else 1
    spec = build_scan(config, settings, command)
    # after the mistakes that a configuration shows: these imports take longer than to find them
    from precision_lab.cli.progress import showing
    from precision_lab.lab.outline import Estimating
    from precision_lab.lab.scan_plan import plan

    planned = plan(spec)
    console = open_console()
    with showing(console) as progress:
        workers = planned.plan.workers
        carry_out(planned, settings.confirm, Estimating(progress, workers, "pass", "this scan"))
    draw_scan(spec.run.out, console)
    return 0


def carry_out(planned: ScanPlan, confirm: int, progress: Progress) -> None:
    """Scans, and confirms so many of the worst and of the best groups of each candidate; leaves the tables."""
    from precision_lab.analysis.sensitivity import chosen
    from precision_lab.lab.scan import Scan

    scan = Scan(planned, progress, partial(spec_of, kind=schema.Sensitivity))
    confirmed = min(2 * confirm * len(planned.spec.candidates), len(planned.injections))
    for line in planned.outline(confirmed):
        progress.note(line)
    with scan.occupying():
        table = scan.measure(confirmed)
        scan.confirm(chosen(table, confirm) if confirm else ())
        scan.time()
        scan.finish()


def build_scan(config: DictConfig, settings: schema.Sensitivity, command: Sequence[str]) -> ScanSpec:
    """The scan that a settled configuration describes. Raises InputError for values that fit none."""
    from precision_lab.lab.groups import check_keys
    from precision_lab.lab.scan_plan import ScanSpec

    if not settings.candidate:
        raise InputError("candidate is empty, expected names like candidate=[affine4,nvfp4]")
    by = [settings.by] if isinstance(settings.by, str) else list(settings.by)
    check_keys(by)
    candidates, noise = build_candidates(config), build_candidates(config, "noise")
    for rewrite in noise:
        if not rewrite.technique(["**"]).preserves_function:
            raise InputError(
                f"noise.{rewrite.name} changes the function of the model, expected a rewrite that preserves it. "
                + nearest(rewrite.name, ["reordered_sums"])
            )
    run = build_spec(config, command, schema.Sensitivity)
    if not run.has_plain_reference:
        raise InputError("sensitivity compares with the plain model in dtype=, expected no other reference")
    if len(run.variants) > 1 or run.variants[0].techniques or run.variants[0].settings:
        raise InputError(
            "sensitivity scans the plain model, expected no variants and no techniques; candidate=[NAME,...] is "
            "what it tries"
        )
    of = [settings.of] if isinstance(settings.of, str) else settings.of
    scan = settings.scan
    return ScanSpec(run, candidates, noise, of, by, scan.steps, config.scan.cases, scan.rounds)


def draw_scan(folder: Path, console: Console) -> None:
    """Page and figures of a finished scan; prints the worst and the best of each candidate and the path of the page."""
    from precision_lab.analysis.sensitivity import candidates_of, ranking
    from precision_lab.record.scan import Scan
    from precision_lab.report import scan as report

    scan = Scan.open(folder)
    page = report.write(scan)
    for candidate in candidates_of(scan.sensitivity):
        ranked = ranking(scan.sensitivity, candidate)
        rows = [report.cells(row) for row in report.ends(ranked, _SHOWN)]
        print_table(console, report.HEADINGS, rows, report.title(candidate, ranked), folding=("group",), keys=2)
    for line in report.remarks(scan):
        console.print(line, soft_wrap=True)
    console.print(f"report: {page}", soft_wrap=True)
