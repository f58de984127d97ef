"""`compare`: one run against another, several runs in one table, or outcomes against a variant of any run.

Whatever is compared with another run, every way in which the two are not alike is named before any number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from yaml import YAMLError

from precision_lab.cli.folders import claimed, stamped
from precision_lab.cli.terminal import open_console, print_table
from precision_lab.errors import InputError, first_line, nearest, shown
from precision_lab.record.folders import given_folder, user_path

if TYPE_CHECKING:
    import pandas as pd

    from precision_lab.analysis.across import Across
    from precision_lab.analysis.outcomes import Distance, Generations
    from precision_lab.analysis.pairing import Renaming
    from precision_lab.record.layout import Layout
    from precision_lab.record.run import Run

_SHOWN = 10


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Prints what differs between runs, then their numbers side by side; writes the page, except with `reference`."""
    from precision_lab.cli import schema
    from precision_lab.record.run import Run

    settings = schema.read(schema.Compare, config)
    paths = find_runs(settings.runs)
    reference = None if settings.reference is None else _reference(settings.reference)
    if len(paths) < 2 and reference is None:
        raise InputError(
            "compare needs runs=[A,B], the folders of two or more runs, or reference=RUN:VARIANT; "
            f"got {shown(settings.runs)}"
        )
    renamed = _renamings(settings.names)
    if settings.base is not None:
        paths = _base_first(settings.base, paths)
    out = checked_folder(settings.out)
    runs = [Run.open(path).whole() for path in paths]
    console = open_console()
    if reference is not None:
        _print_against(reference, runs, console)
        return 0
    from precision_lab.analysis import across

    named = dict(zip(labels(paths), runs, strict=True))
    found = across.compare(named, {name: settings_of(run) for name, run in named.items()}, renamed, settings.blocks)
    if len(runs) == 2:
        _print_pair(runs[0], runs[1], console)
    else:
        from precision_lab.analysis.collected import differing_facts

        about = differing_facts(named, {name: settings_of(run) for name, run in named.items()})
        print_collected(named, about, f"{len(runs)} runs", console)
    _write(found, out, console)
    return 0


def _write(found: Across, out: Path | None, console: Console) -> None:
    """Writes the page, and prints the short answer and the path of the page."""
    from precision_lab.report import compared

    for line in compared.answers(found):
        console.print(line, soft_wrap=True)
    with claimed(stamped("compare")) if out is None else nullcontext(out) as folder:
        console.print(f"report: {compared.write(found, folder)}", soft_wrap=True)


def checked_folder(out: str | None) -> Path | None:
    """The folder to write. Raises InputError if it is no folder, or holds anything but an earlier comparison."""
    if out is None:
        return None
    folder = given_folder(out)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "compare.html").is_file():
        raise InputError(f"out={out} holds other files, expected a new or an empty folder, or an earlier comparison")
    return folder


def _base_first(base: str, paths: list[Path]) -> list[Path]:
    """The paths with the base first, by its label or path."""
    names = [*labels(paths), *map(str, paths)]
    if base not in names:
        raise InputError(f"base is {shown(base)}, expected one of runs. {nearest(base, names)}")
    own = paths[names.index(base) % len(paths)]
    return [own, *(path for path in paths if path != own)]


def _renamings(sites: str | Mapping[str, str] | None) -> list[Renaming]:
    """The patterns of names=, which is a mapping or a YAML file that holds one."""
    from precision_lab.analysis.pairing import renamings

    if isinstance(sites, str):
        from precision_lab.record.files import read_text

        path = user_path(sites)
        try:
            read: Any = OmegaConf.to_container(OmegaConf.create(read_text(path)), resolve=False)
        except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"names: {path} cannot be read: {first_line(error)}") from error
        if not isinstance(read, Mapping) or not all(isinstance(v, str) for pair in read.items() for v in pair):
            raise InputError(f"names: {path} is no mapping of texts, expected lines like 'blocks.*.mlp: layers.*.ffn'")
        sites = read
    return renamings(sites or {})


def find_runs(given: Sequence[str]) -> list[Path]:
    """The folders that `runs` names; a pattern such as SWEEP/* stands for the runs that match it, in natural order."""
    if not given or not all(given):
        raise InputError(f"compare needs runs=[A,B], the folders of two or more runs; got {shown(given)}")
    from precision_lab.record import manifest
    from precision_lab.record.sweep import natural

    paths: list[Path] = []
    for entry in given:
        if not has_magic(entry) or Path(entry).is_dir():
            paths.append(user_path(entry))
            continue
        found = [Path(path) for path in glob(str(user_path(entry)))]
        matched = sorted(
            (path for path in found if (path / manifest.FILE).is_file()), key=lambda path: natural(str(path))
        )
        if not matched:
            raise InputError(f"runs: {entry} matches no folder of a run ({len(found)} other files and folders)")
        paths += [path for path in matched if path not in paths]
    return paths


def _reference(given: str) -> Generations:
    """The generations that RUN:VARIANT names; RUN alone stands for its own reference."""
    from precision_lab.analysis.outcomes import Generations
    from precision_lab.record.run import Run

    if not given:
        raise InputError(f"reference is {given!r}, expected RUN:VARIANT, the folder of a run and one of its variants")
    folder, colon, name = given.rpartition(":")
    if not colon or user_path(given).is_dir():
        run = Run.open(user_path(given)).whole()
        return Generations(run, run.reference)
    run = Run.open(user_path(folder)).whole()
    if name not in run.manifest.variants:
        raise InputError(f"reference: {folder} has no variant {name!r}. {nearest(name, run.manifest.variants)}")
    return Generations(run, name)


def settings_of(run: Run) -> Mapping[str, Any]:
    """The configuration of a run; empty where it has none. Raises InputError for a file that cannot be read."""
    try:
        settings: Any = OmegaConf.to_container(OmegaConf.create(run.config))
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{run.path / 'config.yaml'} cannot be read: {first_line(error)}") from error
    if not isinstance(settings, Mapping):
        raise InputError(f"{run.path / 'config.yaml'} holds no settings, expected those of a run")
    return settings


def _print_pair(first: Run, second: Run, console: Console) -> None:
    from precision_lab.analysis.alike import same_model, shared_cases
    from precision_lab.analysis.compare import headline, range_changes
    from precision_lab.analysis.outcomes import Generations, distance

    numbers = headline(first, second)
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


def _print_against(reference: Generations, runs: Sequence[Run], console: Console) -> None:
    from precision_lab.analysis.alike import same_model, shared_cases
    from precision_lab.analysis.outcomes import Generations, distance

    rows: list[tuple[tuple[str, ...], Distance]] = []
    for name, run in zip(labels([run.path for run in runs]), runs, strict=True):
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
    runs: Mapping[str, Run], about: Mapping[str, Mapping[str, str]], title: str, console: Console
) -> pd.DataFrame:
    """Prints one table of several runs, and returns it: what differs between them, and the headline numbers."""
    from precision_lab.analysis.collected import KEYS, collect

    table = collect(runs, about)
    filled = table.dropna(axis="columns", how="all")
    columns = [str(column) for column in filled.columns]
    rows = [[cell(value) for value in row] for row in filled.itertuples(index=False)]
    folding = [*(name for differing in about.values() for name in differing), "techniques", "error"]
    print_table(console, columns, rows, title, folding=folding, keys=len(KEYS))
    return table


def labels(paths: Sequence[Path]) -> list[str]:
    """Short names of folders: the last part of each path, or the whole path if that is ambiguous.

    A folder that is listed again has its place in the list too: a run may be compared with itself.
    """
    names = [path.name for path in paths]
    whole = [path.name if names.count(path.name) == 1 else str(path) for path in paths]
    return [f"{name} ({at + 1})" if name in whole[:at] else name for at, name in enumerate(whole)]


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
