"""`survival`: what arrives of a change of the weights in each format, from configuration to page."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from precision_lab.cli import schema
from precision_lab.cli.candidates import build_candidates, make
from precision_lab.cli.config import build_source, plain
from precision_lab.cli.folders import claimed, stamped
from precision_lab.cli.literal import literal
from precision_lab.cli.paths import option_files
from precision_lab.cli.survival_schema import Survival as Settings
from precision_lab.cli.terminal import open_console, print_table
from precision_lab.cli.unused import OF_CASES, check_used
from precision_lab.device.environment import environment, set_numeric_switches
from precision_lab.errors import InputError
from precision_lab.lab.candidates import Candidate
from precision_lab.record.folders import given_folder

NAME = "survival"
_USED = ("model", "adapter", "other", "strength", "rms", "rank", "seed", "candidate", "of", "orders", "roundings")


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Measures layer by layer and draws; prints a row a format, the verdicts and the path of the page."""
    set_numeric_switches()
    config = literal(config)
    settings = schema.read(Settings, config)
    check_used(command, _USED, OF_CASES)
    settings.check()
    given = None if settings.out is None else _checked(given_folder(settings.out))
    candidates = build_candidates(config)
    from precision_lab.lab.survival import Survival

    planned = _plan(config, settings, candidates)
    measured = Survival(planned.candidates, settings.orders, settings.roundings, settings.seed)
    console = open_console()
    with claimed(stamped(NAME)) if given is None else nullcontext(given) as out:
        _measure(planned, measured, config, command, out, console)
    return 0


@dataclass(frozen=True)
class _Plan:
    """source: of the model. changes: by site. change: in words. claims: as stated."""

    source: Any
    candidates: Sequence[Candidate]
    changes: Mapping[Any, Any]
    change: str
    claims: Mapping[str, Any]


def _plan(config: DictConfig, settings: Settings, candidates: Sequence[Candidate]) -> _Plan:
    """Everything that can be refused, before anything is computed or written."""
    import mlx.core as mx

    from precision_lab.analysis.survival import stated
    from precision_lab.instrument.sites import select, walk
    from precision_lab.lab import deltas
    from precision_lab.lab.formats import distinct, expect_formats
    from precision_lab.lab.groups import linears
    from precision_lab.lab.subject import components_of
    from precision_lab.model.coded import LINEARS

    expect_formats(candidates)
    candidates = candidates or distinct(_every_candidate())
    subjects = [
        f"{c.name}:{order}:{rounding}"
        for c in candidates
        for order in settings.orders
        for rounding in settings.roundings
    ]
    claims = plain(config.claims)
    stated(claims, subjects)
    source = build_source(config.model)
    components = components_of(source.load(mx.float32), source.layout)
    every = walk(components)
    default = linears(every)
    sites = default
    if settings.of is not None:
        if not settings.of:
            raise InputError("of is [], expected patterns of linears, or null")
        sites = [site for site in select(settings.of, every) if isinstance(site.module, LINEARS)]
    if not sites:
        raise InputError(
            f"of={settings.of} names no linear" if settings.of else "this model has no linears, name some with of="
        )
    if settings.adapter is not None:
        changes = deltas.of_adapter(sites, settings.adapter, settings.strength, every)
        words = f"the adapter {settings.adapter}, strength {settings.strength:g}"
    elif settings.other is not None:
        node = OmegaConf.create({**plain(config.model), "path": settings.other})
        if "name" in node:
            node.name = None
        theirs = build_source(node)
        other = components_of(theirs.load(mx.float32), theirs.layout)
        changes = deltas.of_checkpoint(sites, settings.other, settings.strength, other)
        words = f"the weights of {settings.other} minus those of the model, strength {settings.strength:g}"
    else:
        size = deltas.RMS if settings.rms is None else settings.rms
        changes = deltas.generated(sites, size, settings.rank, settings.seed)
        rank = "full rank" if settings.rank is None else f"rank {settings.rank}"
        words = f"generated, Gaussian, {rank}, rms {size:g} of each weight's, seed {settings.seed}"
    return _Plan(source, candidates, changes, words, claims)


def _measure(
    planned: _Plan, measured: Any, config: DictConfig, command: Sequence[str], out: Path, console: Console
) -> None:
    """Measures and writes; what is finished is kept when the command is interrupted."""
    from precision_lab.cli.progress import showing
    from precision_lab.lab.survival import Unchanged, Unfit, shape_of
    from precision_lab.record.files import write_text
    from precision_lab.record.manifest import Environment
    from precision_lab.record.survival import Findings, FormatEntry, frame_of, write_table

    rows: list[dict[str, Any]] = []
    unchanged: list[str] = []
    unfit: dict[str, list[Unfit]] = {candidate.name: [] for candidate in planned.candidates}
    status, started = "complete", time.monotonic()
    interrupt = None
    with showing(console) as progress:
        progress.start(sum(outputs * channels for outputs, channels in map(shape_of, planned.changes)))
        try:
            for found in measured.measure(planned.changes, progress.advance):
                if isinstance(found, Unfit):
                    unfit[found.format].append(found)
                elif isinstance(found, Unchanged):
                    unchanged.append(found.site)
                else:
                    rows += found
        except KeyboardInterrupt as error:
            status, interrupt = "interrupted", error
    if not rows:
        if interrupt is not None:
            raise interrupt
        raise _nothing(planned, unchanged, unfit)
    table = frame_of(rows)
    sites = len(table[["component", "site"]].drop_duplicates())
    fits = table.groupby("format")["site"].nunique()
    tried = len(planned.changes) - len(unchanged)
    formats = {
        name: FormatEntry(int(fits.get(name, 0)), tried, own[0].reason if own else "") for name, own in unfit.items()
    }
    resolved = config.copy()
    del resolved.out
    write_text(out / "config.yaml", OmegaConf.to_yaml(resolved))
    write_table(out, table)
    Findings(
        status=status,
        experiment=NAME,
        environment=Environment(**environment()),
        checkpoint=planned.source.checkpoint,
        change=planned.change,
        sites=sites,
        unchanged=len(unchanged),
        formats=formats,
        command=["python", "-m", "precision_lab", *command],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 1),
        stated=[{"id": name, **entries} for name, entries in planned.claims.items()],
    ).write(out)
    draw(out, console)
    if interrupt is not None:
        raise interrupt


def draw(folder: Path, console: Console) -> None:
    """Verdicts, page and figures of a folder; prints a row a format, the verdicts and the path of the page."""
    from precision_lab.report import survival as report

    page, found = report.write(folder)
    print_table(console, report.BRIEF, report.brief(found), report.title(found), folding=("worst linear",))
    console.print(report.WORDS, soft_wrap=True)
    for line in report.statements(found):
        console.print(line, soft_wrap=True)
    console.print(f"report: {page}", soft_wrap=True)


def _every_candidate() -> list[Candidate]:
    """All options of the configuration group, those of --config-dir included."""
    found = []
    for path in option_files("candidate").values():
        for name, node in plain(OmegaConf.load(path)).items():
            found.append(Candidate(name, node, make))
    return found


def _nothing(planned: _Plan, unchanged: Sequence[str], unfit: Mapping[str, Sequence[Any]]) -> InputError:
    """Why there are no rows."""
    if len(unchanged) == len(planned.changes):
        return InputError(f"Nothing changes: {planned.change} is zero at all {len(unchanged)} linears")
    first = next(own[0] for own in unfit.values() if own)
    return InputError(f"No format fits any of the linears. {first.format} at {first.site}: {first.reason}")


def _checked(out: Path) -> Path:
    """Raises InputError for a folder that already holds a result."""
    from precision_lab.record import manifest
    from precision_lab.record.survival import FILE

    for name in (FILE, manifest.FILE):
        if (out / name).exists():
            raise InputError(f"out={out} already holds {name}. Give another folder")
    return out
