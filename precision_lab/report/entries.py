"""Results in the rows of an index: one for each run, and one for each of its variants."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from precision_lab.analysis.summary import failures
from precision_lab.errors import InputError
from precision_lab.record.collection import Member
from precision_lab.record.manifest import Environment, Storage
from precision_lab.record.origin import short
from precision_lab.record.run import Run
from precision_lab.record.summary import ClaimEntry, Quantity, VariantSummary
from precision_lab.report import wording
from precision_lab.report.figures import pareto
from precision_lab.report.figures.pareto import Point

_NOTHING = Quantity(None)
_AS_STORED = "as stored"
RATIO = "time of a step / that of the run's baseline"


@dataclass(frozen=True)
class Row:
    """A variant of a run, with its number on the page and in the figure.

    metrics: in the order of the columns. claims: those on this variant. on_front: whether no other dominates it.
    """

    number: int
    name: str
    entry: VariantSummary
    computed_in: str
    weights: str
    stored: Storage | None
    metrics: Sequence[Quantity]
    claims: Sequence[ClaimEntry]
    is_baseline: bool
    on_front: bool


@dataclass(frozen=True)
class Entry:
    """A run on the page, or other results. link: to the report, relative to the page; empty if there is none.

    reasons: of exit code 1. drift, time: of the variants but the reference, the least and the greatest, or None.
    """

    member: Member
    link: str
    rows: Sequence[Row]
    reasons: Sequence[str]
    drift: tuple[float, float] | None
    time: tuple[float, float] | None

    @property
    def name(self) -> str:
        return self.member.job.name

    @property
    def trouble(self) -> str:
        return self.member.trouble

    @property
    def status(self) -> str:
        """One word on how it stands: complete, interrupted, unreadable ..."""
        if self.member.broken:
            return "unreadable"
        facts = self.member.facts
        return facts.status if facts else "failed" if self.member.job.error else "not begun"

    @property
    def weights(self) -> str:
        return short(self.member.facts.checkpoint.weights) if self.member.facts else ""

    @property
    def commit(self) -> str:
        return commit(self.member.facts.environment) if self.member.facts else ""

    @property
    def remarks(self) -> list[str]:
        """What to know of it: trouble, the verdict of a gate, reasons of exit code 1, what it is if no run."""
        judged, facts = self.member.gate, self.member.facts
        found = [self.trouble.removeprefix(f"{self.status}: ")] if self.trouble not in ("", self.status) else []
        found += [f"gate {judged.word}"] if judged else []
        found += [f"exit code 1: {reason}" for reason in self.reasons]
        if facts is not None and not self.member.kind and not self.rows and not self.trouble:
            found.append(f"no summary.json: report run={self.member.job.folder} judges the run")
        return found


@dataclass(frozen=True)
class Collected:
    """The entries of an index, the points of its figure, and the metrics that are columns. time: what points state."""

    entries: Sequence[Entry]
    points: Sequence[Point]
    metrics: Sequence[str]
    time: str


def collect(members: Sequence[Member], folder: Path) -> Collected:
    """Results for a page in `folder`, from manifests and summaries alone. Raises InputError for a damaged summary.

    Runs of several machines or models have no seconds in common: their points state ratios.
    """
    runs = {at: member.job.run for at, member in enumerate(members) if member.job.run is not None}
    places = {(run.manifest.environment.machine, run.manifest.checkpoint.fingerprint) for run in runs.values()}
    experiments = {run.manifest.experiment for run in runs.values()}
    time = pareto.SECONDS if len(places) < 2 else RATIO
    points: dict[int, dict[str, Point]] = {}
    for at, run in runs.items():
        points[at] = {}
        for name, entry in listed(run):
            number = sum(map(len, points.values())) + 1
            group = run.manifest.experiment if len(experiments) > 1 else name
            points[at][name] = _point(number, group, run, name, entry, time)
    every = [point for own in points.values() for point in own.values()]
    fronts = pareto.fronts(every, time)
    on_front = {number for front in fronts.values() for number in front}
    metrics = list(dict.fromkeys(n for run in runs.values() for _, entry in listed(run) for n in entry.metrics))
    entries = [
        _entry(member, folder, list(_rows(runs[at], points[at], on_front, metrics)) if at in runs else [])
        for at, member in enumerate(members)
    ]
    return Collected(entries, every, metrics, time)


def listed(run: Run) -> list[tuple[str, VariantSummary]]:
    """The variants of a run but its reference, or that alone; none for a run that has not been judged yet."""
    found = dict(run.summary.variants) if run.summary else {}
    return [(name, entry) for name, entry in found.items() if name != run.reference] or list(found.items())


def commit(environment: Environment) -> str:
    """The commit in ten digits, and whether there were local changes."""
    local = " with local changes" if environment.dirty else ""
    return f"{environment.commit[:10]}{local}" if environment.commit else ""


def _entry(member: Member, folder: Path, rows: Sequence[Row]) -> Entry:
    run = member.job.run
    reasons: list[str] = []
    if run is not None and run.summary is not None:
        try:
            reasons = failures(run, run.summary)
        except InputError as error:  # a claim that no version understands
            reasons = [str(error)]
    ratios = [row.entry.latency.ratio for row in rows if row.entry.latency and not row.is_baseline]
    link = _link(member.job.folder / "report.html", folder)
    return Entry(member, link, rows, reasons, _ends(row.entry.latent_rel_l2.value for row in rows), _ends(ratios))


def _ends(values: Iterable[float | None]) -> tuple[float, float] | None:
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    return (min(known), max(known)) if known else None


def _point(number: int, group: str, run: Run, name: str, entry: VariantSummary, time: str) -> Point:
    stored, timing = _stored(run, name), entry.latency
    cost = None if timing is None else timing.median_s if time == pareto.SECONDS else timing.ratio
    return Point(number, group, entry.latent_rel_l2.value, cost, stored.bytes if stored else None)


def _stored(run: Run, variant: str) -> Storage | None:
    stated = run.manifest.variants.get(variant)
    return stated.stored(run.layout.default) if stated else None


def _rows(run: Run, points: Mapping[str, Point], on_front: set[int], metrics: Sequence[str]) -> Iterator[Row]:
    claims = run.summary.claims if run.summary else ()
    for name, entry in listed(run):
        number = points[name].number
        computed_in, weights = wording.dtype(entry.dtype)
        yield Row(
            number=number,
            name=name,
            entry=entry,
            computed_in=computed_in,
            weights="" if entry.dtype.weights == _AS_STORED else weights,
            stored=_stored(run, name),
            metrics=[entry.metrics.get(metric, _NOTHING) for metric in metrics],
            claims=[claim for claim in claims if claim.subject == name],
            is_baseline=name == run.manifest.baseline,
            on_front=number in on_front,
        )


def _link(page: Path, folder: Path) -> str:
    """Relative to the folder; empty for a page that is not there."""
    return quote(os.path.relpath(page, folder).replace(os.sep, "/")) if page.is_file() else ""
