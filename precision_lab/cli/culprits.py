"""`culprits`: a minimal set of sites that must be spared for a criterion, from configuration to page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from omegaconf import DictConfig
from rich.console import Console

from precision_lab.analysis.criteria import Criterion, Judgement
from precision_lab.analysis.minimal import Minimal, MinimalSet, Names, most_runs
from precision_lab.cli.candidates import make
from precision_lab.cli.criteria import build_criterion
from precision_lab.cli.culprits_spec import ALL_SPARED, NOTHING_SPARED, Prepared, prepare, spec_of
from precision_lab.cli.progress import showing
from precision_lab.cli.sparing import build_sparing
from precision_lab.cli.terminal import open_console, print_table
from precision_lab.device.environment import set_numeric_switches
from precision_lab.errors import VariantError
from precision_lab.lab.bench import Bench
from precision_lab.lab.outline import Estimating, Progress, counted, resources
from precision_lab.lab.sparing import Sparing
from precision_lab.lab.subject import Case
from precision_lab.lab.trials import Trial, Trials
from precision_lab.record.culprits import TECHNIQUE, TRIALS, Culprit, Culprits, Validation
from precision_lab.record.files import write_atomically, write_text


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Searches, validates and draws; prints the culprits and the path of the page."""
    set_numeric_switches()
    prepared = prepare(config, command)
    settings, spec = prepared.settings, prepared.spec
    criterion, others = build_criterion(settings, prepared.resolved, prepared.others, spec.source.layout)
    components = Bench(spec).components("float32")
    sparing, altered, spared = build_sparing(settings, prepared.resolved, prepared.others, components)
    ends = {NOTHING_SPARED: sparing.trial([]), ALL_SPARED: sparing.trial(sparing.names)}
    spec = replace(spec, variants=[replace(trial.variant(make), name=name) for name, trial in ends.items()])
    console = open_console()
    with showing(console) as shown:
        progress = Estimating(shown, whole="this search, if one group must be spared")
        trials = Trials(spec, progress, make, spec_of, stops=criterion.by_case)
        progress.workers = trials.plan.workers
        for line in outline(trials, sparing, criterion, altered, prepared, settings.checks):
            progress.note(line)
        with trials.opened():
            search = Search(trials, sparing, criterion, others, progress)
            found = search.run(prepared.search, settings.checks, settings.subsets)
            validation = search.validate(found, prepared.validation) if found.status == "found" else None
            search.write(found, validation, altered, spared)
    draw(spec.out, console)
    return 0


def outline(
    trials: Trials, sparing: Sparing, criterion: Criterion, altered: str, prepared: Prepared, checks: int
) -> list[str]:
    """What the search is about to do, in a few lines."""
    groups = len(sparing.names)
    runs = [f"{most_runs(groups, found)} runs if {found} must be" for found in (1, 2, 4) if found <= groups]
    first = (
        f"{prepared.spec.experiment}: which of {counted(groups, 'group')} must be spared, so that {criterion.words} "
        f"({altered} elsewhere): at most {', '.join(runs)}, and at least {counted(2 * checks, 'run')} of checks"
    )
    cases = (
        f"{counted(len(prepared.search), 'case')} a run, of {counted(trials.bench.steps(prepared.search[0]), 'step')}"
    )
    validated = f"; what is found, on {counted(len(prepared.validation), 'case')} more" if prepared.validation else ""
    return [first, *resources(trials.plan, [f"{cases}{validated}"])]


class Search:
    """A search in the folder of `trials`. others: trials with which the criterion compares."""

    def __init__(
        self, trials: Trials, sparing: Sparing, criterion: Criterion, others: Sequence[Trial], progress: Progress
    ):
        self._trials, self._sparing, self._criterion = trials, sparing, criterion
        self._others, self._progress = list(others), progress
        self._judgements: dict[Names, Judgement] = {}
        self._recipes: dict[Names, Mapping[str, Mapping[str, Any]]] = {}
        self._rows: list[pd.DataFrame] = []

    def run(self, cases: Sequence[Case], checks: int, subsets: int) -> Minimal:
        """Finds a minimal set of groups. Raises VariantError if a trial raises."""
        strategy = MinimalSet(self._sparing.names, checks, subsets)
        expected = most_runs(len(self._sparing.names), 1)
        while wanted := strategy.ask():
            ran = len(strategy.holds)
            expected = max(expected, 2 * ran)
            self._progress.start(sum(map(self._trials.bench.steps, cases)) * (1 + expected))
            found = self._evaluated(wanted, cases)
            for number, names in enumerate(wanted, ran):
                self._rows.append(self._labelled("search", number, names, found[names]))
            self._judgements |= found
            strategy.tell({names: found[names].holds for names in wanted})
        assert strategy.result is not None
        return strategy.result

    def validate(self, found: Minimal, cases: Sequence[Case]) -> Validation | None:
        """The found set on other cases; None without any."""
        if not cases:
            return None
        names = Names(found.names)
        judged = self._evaluated([names], cases, at_once=True)[names]
        self._rows.append(self._labelled("validation", len(self._rows), names, judged))
        failing = [f"prompt {prompt}, seed {seed}" for prompt, seed in judged.failing]
        prompts = list(dict.fromkeys(case.prompt for case in cases))
        seeds = list(dict.fromkeys(case.seed for case in cases))
        return Validation(prompts, seeds, len(cases), judged.holds, failing, judged.outcome)

    def write(self, found: Minimal, validation: Validation | None, altered: str, spared: str) -> None:
        """Writes the trials, the recipe and what was found into the folder."""
        folder, sparing = self._trials.spec.out, self._sparing
        recipe = sparing.recipe(found.names) if found.status == "found" else {}
        table = pd.concat(self._rows, ignore_index=True)
        write_atomically(folder / TRIALS, lambda file: table.to_parquet(file, index=False))
        if recipe:
            text = yaml.safe_dump({**sparing.nodes, **recipe}, sort_keys=False, default_flow_style=None, width=120)
            about = f"# {self._criterion.words}; {altered} where nothing is spared. See ../report.html\n"
            write_text(folder / "technique" / f"{TECHNIQUE}.yaml", about + text)
        everything, sites = Names(sparing.names), sparing.sites(found.names)
        rest = [site for site in sparing.sites(sparing.names) if site not in set(sites)]
        Culprits(
            status=found.status,
            criterion=self._criterion.words,
            altered=altered,
            spared=spared,
            dtype=sparing.dtype,
            groups=len(sparing.groups),
            sites=len(sites) + len(rest),
            nothing_spared=self._judgements[Names()].outcome,
            all_spared=self._judgements[everything].outcome,
            culprits=self._culprits(found),
            patterns=sparing.patterns(sites),
            rest=sparing.patterns(rest) if sites else [],
            runs=found.runs,
            bound=most_runs(len(sparing.groups), len(found.names)),
            checks=found.checks,
            violations=len(found.violations),
            fallback=found.fallback,
            left_out=found.left_out,
            is_minimal=found.is_minimal,
            is_only=found.is_only,
            validation=validation,
            techniques=[*sparing.nodes, *recipe] if recipe else [],
        ).write(folder)

    def _culprits(self, found: Minimal) -> list[Culprit]:
        groups = {group.name: group for group in self._sparing.groups}
        return [
            Culprit(
                group=name,
                found=found.discovered.index(name) + 1,
                sites=self._sparing.patterns(groups[name].sites),
                block=groups[name].block,
                operation=groups[name].operation,
                without=self._judgements[Names(found.names) - {name}].outcome,
                can_be_replaced=None if found.is_only is None else name in found.instead,
                instead=found.instead.get(name),
            )
            for name in found.names
        ]

    def _evaluated(
        self, wanted: Sequence[Names], cases: Sequence[Case], at_once: bool = False
    ) -> dict[Names, Judgement]:
        """The judgements on some sets. A criterion for every case is tried on the first, unless all are run `at_once`.

        Whether the other cases are run does not depend on the number of workers.
        """
        trials = {names: self._sparing.trial(names, f"sparing {len(names)}") for names in wanted}
        self._recipes |= {names: trial.nodes for names, trial in trials.items()}
        waves = [cases[:1], cases] if self._criterion.by_case and len(cases) > 1 and not at_once else [cases]
        found: dict[Names, Judgement] = {}
        for wave in waves:
            left = {names: trial for names, trial in trials.items() if names not in found or found[names].holds}
            if left:
                found |= self._judged(left, wave)
        return found

    def _judged(self, trials: Mapping[Names, Trial], cases: Sequence[Case]) -> dict[Names, Judgement]:
        run = self._trials.evaluate([*trials.values(), *self._others], cases)
        for key, message in run.manifest.errors.items():
            raise VariantError(f"trial {key} failed: {message}. Traceback: {self._trials.spec.out}/errors/{key}.txt")
        return {names: Judgement.of(self._criterion, run, trial.key) for names, trial in trials.items()}

    def _labelled(self, stage: str, number: int, names: Names, judged: Judgement) -> pd.DataFrame:
        about: dict[str, Any] = {"run": number, "stage": stage, "spared": len(names)}
        about["techniques"] = json.dumps(self._recipes[names])
        about["holds"] = judged.holds
        frame = judged.rows.assign(**about, value=judged.outcome.value)
        return frame[[*about, "value", *judged.rows.columns]].astype({"value": "float64"})


def draw(folder: Path, console: Console) -> None:
    """The page of a finished search; prints the culprits and the path of the page."""
    from precision_lab.report import culprits as report

    page, found = report.write(folder)
    if found.culprits:
        print_table(console, report.HEADINGS, report.cells(found), report.title(found), folding=("group", "without it"))
    for line in report.statements(found):
        console.print(line, soft_wrap=True)
    if found.techniques:
        console.print(f"recipe: {report.command(folder, found)}", soft_wrap=True)
    console.print(f"report: {page}", soft_wrap=True)
