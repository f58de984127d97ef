"""The tables that `compare` prints: what is not alike, headline numbers, outcomes and ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from yaml import YAMLError

from precision_lab.cli.terminal import print_table
from precision_lab.errors import InputError, first_line

if TYPE_CHECKING:
    import pandas as pd

    from precision_lab.analysis.across import Across
    from precision_lab.analysis.outcomes import Distance, Generations
    from precision_lab.record.layout import Layout
    from precision_lab.record.run import Run
    from precision_lab.record.summary import VariantSummary

_SHOWN = 10


def settings_of(run: Run) -> Mapping[str, Any]:
    """The configuration of a run; empty where it has none. Raises InputError for a file that cannot be read."""
    try:
        settings: Any = OmegaConf.to_container(OmegaConf.create(run.config))
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{run.path / 'config.yaml'} cannot be read: {first_line(error)}") from error
    if not isinstance(settings, Mapping):
        raise InputError(f"{run.path / 'config.yaml'} holds no settings, expected those of a run")
    return settings


def print_pair(found: Across, console: Console) -> None:
    """Two runs: what is not alike, headline numbers, outcomes, and the ranges that changed most."""
    from precision_lab.analysis.alike import same_model, shared_cases
    from precision_lab.analysis.compare import headline, range_changes
    from precision_lab.analysis.outcomes import Generations, distance

    first, second = found.runs.values()
    numbers = headline(first, second, list(found.results.values()))
    _print_differences(first, second, console)
    counts = [len(run.manifest.prompts) * len(run.manifest.seeds) for run in (first, second)]
    _print_frame(numbers, f"Headline numbers, each run over its own cases ({counts[0]} and {counts[1]})", console)
    if not same_model(first, second):
        return
    rows = [
        ((name,), distance(Generations(first, name), Generations(second, name), cases))
        for name in first.manifest.variants
        if name in second.manifest.variants and (cases := shared_cases(first, second, name, name))
    ]
    _print_distances(("variant",), rows, "Outcomes of the second run against those of the first", first.layout, console)
    changes = range_changes(first, second)
    largest = with_addresses(changes.head(_SHOWN), second.layout)
    title = f"Largest changes of amax, in bits ({len(changes)} addresses compared), newly non-finite arrays first"
    _print_frame(largest, title, console)


def print_against(reference: Generations, runs: Mapping[str, Run], console: Console) -> None:
    """The outcomes of each variant of the runs, by their labels, against those of another."""
    from precision_lab.analysis.alike import same_model, shared_cases
    from precision_lab.analysis.outcomes import Generations, distance

    rows: list[tuple[tuple[str, ...], Distance]] = []
    for name, run in runs.items():
        itself = run.path.resolve() == reference.run.path.resolve()
        if not itself:
            _print_differences(reference.run, run, console)
        comparable = same_model(reference.run, run)
        for variant in run.manifest.variants:
            if not (itself and variant == reference.variant):
                cases = shared_cases(reference.run, run, reference.variant, variant) if comparable else {}
                rows.append(((name, variant), distance(reference, Generations(run, variant), cases)))
    title = f"Outcomes against variant {reference.variant} of {reference.run.path}"
    _print_distances(("run", "variant"), rows, title, reference.run.layout, console)


def _print_differences(first: Run, second: Run, console: Console) -> None:
    from precision_lab.analysis.alike import difference_of_models, differences, facts, shared_cases

    console.print(f"first: {first.path}\nsecond: {second.path}", soft_wrap=True)
    models = difference_of_models(first, second)
    if models:
        console.print(f"These are runs of different models: {models}. Their arrays and outcomes are not compared")
    found = differences(facts(first, settings_of(first)), facts(second, settings_of(second)))
    if found:
        columns = ("not alike", "first", "second")
        rows = [(difference.what, difference.first, difference.second) for difference in found]
        print_table(console, columns, rows, folding=columns)
    elif not models:
        console.print("The runs are alike: checkpoint, settings, prompts, seeds, probes, versions and device")
    if not models and not shared_cases(first, second):
        why = "their settings differ" if first.manifest.case != second.manifest.case else "no prompt and seed is shared"
        console.print(f"No case of the two is alike, {why}: no outcome is compared")


def _print_distances(
    keys: Sequence[str], rows: Sequence[tuple[tuple[str, ...], Distance]], title: str, layout: Layout, console: Console
) -> None:
    """Prints one row for each pair of variants that have outcomes in common."""
    picture = layout.picture is not None
    columns = [*keys, "cases", "identical", "non-finite", f"{layout.result.title} rel_l2", "worst rel_l2"]
    columns += ["psnr dB", "worst psnr", "ssim", "worst ssim"] if picture else []
    cells = []
    for names, found in rows:
        if found.cases:
            values: list[object] = [found.rel_l2, found.rel_l2_worst]
            values += [found.psnr_db, found.psnr_db_worst, found.ssim, found.ssim_worst] if picture else []
            counts = (found.cases, found.identical, found.nonfinite)
            cells.append([*names, *map(str, counts), *map(cell, values)])
    if cells:
        print_table(console, columns, cells, f"{title}: medians over cases, and the worst case", keys=len(keys))
    without = [" ".join(names) for names, found in rows if not found.cases]
    if without:
        console.print(f"No pictures and no stored results of the same cases: {', '.join(without)}", soft_wrap=True)


def print_collected(
    runs: Mapping[str, Run],
    about: Mapping[str, Mapping[str, str]],
    title: str,
    console: Console,
    results: Mapping[str, Mapping[str, VariantSummary]] | None = None,
) -> pd.DataFrame:
    """Prints one table of several runs, and returns it: what differs between them, and the headline numbers.

    results: by run and variant, where they are known.
    """
    from precision_lab.analysis.collected import KEYS, collect

    table = collect(runs, about, results)
    filled = table.dropna(axis="columns", how="all")
    columns = [str(column) for column in filled.columns]
    rows = [[cell(value) for value in row] for row in filled.itertuples(index=False)]
    folding = [*(name for differing in about.values() for name in differing), "techniques", "error"]
    print_table(console, columns, rows, title, folding=folding, keys=len(KEYS))
    return table


def with_addresses(changes: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """The changes with one column for component, site and port."""
    place = ["component", "site", "port"]
    named = changes.drop(columns=place)
    named.insert(1, "site", [layout.address(*row) for row in changes[place].itertuples(index=False, name=None)])
    return named


def _print_frame(frame: pd.DataFrame, title: str, console: Console) -> None:
    columns = [str(column) for column in frame.columns]
    rows = [[cell(value) for value in row] for row in frame.itertuples(index=False)]
    print_table(console, columns, rows, title, folding=("site",))


def cell(value: object) -> str:
    """A value as the tables of this command show it."""
    if value is None or repr(value) in ("<NA>", "nan"):
        return "-"
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 1e15
        return "identical" if value == float("inf") else str(int(value)) if whole else f"{value:.5g}"
    return str(value)
