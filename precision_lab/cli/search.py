"""`search`: the recipe of least drift within a budget, from configuration to page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from precision_lab.cli import schema, search_schema
from precision_lab.cli.literal import settled
from precision_lab.cli.probes import without_settings_of_absent
from precision_lab.cli.terminal import open_console
from precision_lab.device.environment import set_numeric_switches
from precision_lab.errors import InputError
from precision_lab.lab.values import one_of
from precision_lab.record.files import read_json, write_json

if TYPE_CHECKING:
    from precision_lab.analysis.search.budgets import Budget
    from precision_lab.analysis.search.families import Families
    from precision_lab.analysis.search.menu import Menu
    from precision_lab.cli.search_config import Prepared
    from precision_lab.lab.outline import Progress
    from precision_lab.lab.scan_plan import ScanPlan
    from precision_lab.lab.trials import Trials
    from precision_lab.record.scan import Scan

STRATEGIES = ("knapsack", "optuna", "scales", "fp8_scales")
"""Those of the command; the last two have modules and settings of their own."""
_STEP = "step.json"
_STEPS_TIMED = 5


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Scans, chooses, tries and checks on held-out cases; prints the recipes and the path of the page."""
    set_numeric_switches()
    config = without_settings_of_absent(settled(config))
    settings = schema.read(search_schema.Search, config)
    one_of("strategy", settings.strategy, STRATEGIES)
    from precision_lab.analysis.search.budgets import Budget

    given = settings.budget
    budget = Budget(_listed(given.gb), _listed(given.bits), given.drift, given.latency)
    samples = settings.strategy == "optuna" or settings.optuna.baseline is True
    if settings.strategy == "optuna" and (not (budget.gb or budget.bits) or budget.drift or budget.latency):
        raise InputError("strategy=optuna searches within a size, expected budget.gb= or budget.bits= alone")
    if samples:
        from precision_lab.analysis.search.families import optuna

        optuna()
    # after the mistakes that a configuration shows: these imports take longer than to find them
    from precision_lab.cli.candidates import make
    from precision_lab.cli.config import spec_of
    from precision_lab.cli.progress import showing
    from precision_lab.cli.search_config import prepared
    from precision_lab.cli.searched import draw_search
    from precision_lab.lab import scan_plan
    from precision_lab.lab.outline import Estimating
    from precision_lab.lab.trials import Trials

    ready = prepared(config, settings, command, settings.strategy == "knapsack")
    budget.sizes(_menu(ready, None))  # what no scan can change
    if budget.latency and ready.scan is not None and not ready.scan.rounds:
        raise InputError("budget.latency needs measured times, run the scan with scan.rounds=5")
    planned = None if ready.scan is None else scan_plan.plan(ready.scan)
    console = open_console()
    generations = _generations(ready, settings, budget)
    rest = float(generations * ready.spec.source.steps(ready.cases[0]))
    with showing(console) as progress:
        estimating = Estimating(progress, whole="this search")
        whole = _Whole(estimating, rest)
        trials = Trials(ready.spec, whole, make, partial(spec_of, kind=search_schema.Search))
        step = math.nan if budget.latency is None else _step_seconds(ready, trials)
        if ready.scanned is not None:
            budget.seconds(_menu(ready, ready.scanned), step)
        estimating.workers = trials.plan.workers
        for line in _outline(ready, settings, generations, trials):
            progress.note(line)
        with trials.opened():
            if budget.latency is not None:
                write_json(ready.spec.out / _STEP, {"seconds": step})
            whole.start(0)
            scan = ready.scanned if planned is None else _scanned(planned, settings.confirm, whole)
            _search(ready, settings, budget, step, trials, scan, whole)
    draw_search(ready.spec.out, console)
    return 0


def _search(
    ready: Prepared,
    settings: search_schema.Search,
    budget: Budget,
    step: float,
    trials: Trials,
    scan: Scan | None,
    progress: Progress,
) -> None:
    """Runs the strategies and leaves tables, recipes and findings."""
    from precision_lab.analysis.search.budgets import smallest_drift
    from precision_lab.cli.searched import leave
    from precision_lab.cli.searching import Search

    menu = _menu(ready, scan)
    limits = budget.sizes(menu)
    seconds = budget.seconds(menu, step)
    given = settings.trials
    search = Search(trials, ready, menu, given.evaluations, progress.advance, seconds, _sampler(ready, settings, menu))
    by_predictions = settings.strategy == "knapsack"
    search.compare(given.sizes if by_predictions else 0)
    start = None
    if budget.drift is not None:
        start = search.smallest_within(budget.drift)
        if start is not None and not limits:
            name, limit = f"{budget.drift:g}drift", menu.nbytes(start.choice)
            limits = {name: limit}
            search.within(name, limit, start)
    elif budget.latency is not None and not limits:
        limits = {f"{budget.latency:g}latency": menu.nbytes(menu.stored)}
    for name, limit in limits.items():
        if by_predictions and name not in search.found:
            search.within(name, limit, smallest_drift(menu, limit, seconds))
        if search.families is not None:
            search.sampled(name, limit, is_result=not by_predictions)
    if budget.drift is not None:
        search.judge(budget.drift, start)
    leave(ready, search, limits, settings)


def _menu(ready: Prepared, scan: Scan | None) -> Menu:
    """The menu of a scan; without one, that of the bytes alone."""
    import pandas as pd

    from precision_lab.analysis.search.menu import menu_of

    recipes = ready.recipes
    if scan is None:
        return menu_of(recipes.rows(), pd.DataFrame(), recipes.stored(), recipes.weights, recipes.fixed)
    names = {candidate.name for candidate in recipes.candidates}
    rows = scan.sensitivity[scan.sensitivity["candidate"].isin(names)]
    return menu_of(rows, scan.noise, scan.groups, recipes.weights, recipes.fixed)


def _scanned(planned: ScanPlan, confirm: int, progress: Progress) -> Scan:
    """The scan in the folder of the search, made or continued, with its page."""
    from precision_lab.cli.sensitivity import carry_out
    from precision_lab.record.manifest import Manifest
    from precision_lab.record.scan import Scan, holds_scan
    from precision_lab.report import scan as report

    folder = planned.spec.run.out
    if not (holds_scan(folder) and Manifest.read(folder).status == "complete"):
        carry_out(planned, confirm, progress)
        report.write(Scan.open(folder))
    return Scan.open(folder)


def _sampler(ready: Prepared, settings: search_schema.Search, menu: Menu) -> Callable[[str, int], Families] | None:
    """Makes the sampler of a budget; None where Optuna is not to be used."""
    from precision_lab.analysis.search.families import Families, is_installed

    own, baseline = settings.optuna, settings.optuna.baseline
    if settings.strategy != "optuna" and (baseline is False or (baseline == "auto" and not is_installed())):
        return None
    folder = ready.spec.out / "optuna"

    def sampler(budget: str, limit: int) -> Families:
        evaluations = settings.trials.evaluations
        return Families(menu, limit, evaluations, own.ranges, own.seed, folder / f"{budget}.log")

    return sampler


def _step_seconds(ready: Prepared, trials: Trials) -> float:
    """The median time of one branch of the plain model's step; a folder that is resumed has it already."""
    path = ready.spec.out / _STEP
    if path.exists():
        return float(read_json(path)["seconds"])
    plain = next(variant for variant in ready.spec.variants if variant.name == ready.spec.baseline)
    samples = [trials.bench.time_step(plain).seconds for _ in range(_STEPS_TIMED + 1)][1:]
    return sorted(samples)[_STEPS_TIMED // 2] / max(1, len(ready.spec.source.layout.branches))


def _outline(ready: Prepared, settings: search_schema.Search, generations: int, trials: Trials) -> list[str]:
    """What the search is about to do, in a few lines."""
    from precision_lab.lab.outline import counted, resources

    names = [candidate.name for candidate in ready.recipes.candidates]
    budgets = [f"{name}={_words(value)}" for name, value in vars(settings.budget).items() if value is not None]
    scan = "" if ready.scan is None else ", after a scan of their sensitivities"
    first = (
        f"{ready.spec.experiment}: {settings.strategy} within {', '.join(budgets) or 'no budget'}, of "
        f"{', '.join(names)}: about {counted(generations, 'generation')} of "
        f"{counted(ready.spec.source.steps(ready.cases[0]), 'step')}{scan}"
    )
    title = ready.spec.source.layout.result.title
    cases = f"{counted(len(ready.cases), 'case')} of the search and {counted(len(ready.held_out), 'case')} held out"
    return [first, *resources(trials.plan, [f"drift of {title} in {cases}"])]


def _words(value: float | Sequence[float]) -> str:
    return f"{value:g}" if isinstance(value, int | float) else f"[{','.join(f'{each:g}' for each in value)}]"


def _generations(ready: Prepared, settings: search_schema.Search, budget: Budget) -> int:
    """About how many generations the trials are, for the progress."""
    given, sizes = settings.trials, max(1, len(budget.gb) + len(budget.bits))
    common = 1 + len(ready.recipes.candidates) + len(ready.included) + given.sizes
    of_each = 2 * given.evaluations + 2 + 1 + len(ready.noise)
    final = common + 4 * sizes
    return (common + of_each * sizes) * len(ready.cases) + final * len(ready.held_out) + len(ready.spec.cases)


def _listed(value: float | Sequence[float] | None) -> tuple[float, ...]:
    return () if value is None else tuple(value) if isinstance(value, Sequence) else (value,)


class _Whole:
    """The progress of the scan and of the trials after it together, in passes of the model."""

    def __init__(self, progress: Progress, rest: float):
        self._progress, self._rest = progress, rest

    def start(self, total: float) -> None:
        self._progress.start(total + self._rest)

    def advance(self, amount: float, label: str) -> None:
        self._progress.advance(amount, label)

    def note(self, text: str) -> None:
        self._progress.note(text)
