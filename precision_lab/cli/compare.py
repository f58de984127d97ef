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

from precision_lab.cli.compare_tables import print_against, print_collected, print_pair, settings_of
from precision_lab.cli.folders import claimed, stamped
from precision_lab.cli.terminal import open_console
from precision_lab.errors import InputError, first_line, nearest, shown
from precision_lab.record.folders import given_folder, user_path

if TYPE_CHECKING:
    from precision_lab.analysis.across import Across
    from precision_lab.analysis.outcomes import Generations
    from precision_lab.analysis.pairing import Renaming


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
    runs = {label: Run.open(path).whole() for label, path in zip(labels(paths), paths, strict=True)}
    console = open_console()
    if reference is not None:
        print_against(reference, runs, console)
        return 0
    from precision_lab.analysis import across

    configured = {name: settings_of(run) for name, run in runs.items()}
    found = across.compare(runs, configured, renamed, settings.blocks)
    if len(runs) == 2:
        print_pair(found, console)
    else:
        from precision_lab.analysis.collected import differing_facts

        print_collected(runs, differing_facts(runs, configured), f"{len(runs)} runs", console, found.results)
    _write(found, out, console)
    return 0


def _write(found: Across, out: Path | None, console: Console) -> None:
    """Writes the page, and prints the short answer and the path of the page."""
    from precision_lab.report import compared
    from precision_lab.report.compared_answers import answers

    for line in answers(found):
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


def labels(paths: Sequence[Path]) -> list[str]:
    """Short names of folders: the last part of each path, or the whole path if that is ambiguous.

    A folder that is listed again has its place in the list too: a run may be compared with itself.
    """
    names = [path.name for path in paths]
    whole = [path.name if names.count(path.name) == 1 else str(path) for path in paths]
    return [f"{name} ({at + 1})" if name in whole[:at] else name for at, name in enumerate(whole)]
