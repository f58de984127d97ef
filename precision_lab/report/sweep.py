"""The index page of a sweep: a row for each variant of each job, a plot of drift against cost, links to the reports."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from precision_lab.record.files import write_text, writing
from precision_lab.record.manifest import Manifest, Storage
from precision_lab.record.run import Run
from precision_lab.record.summary import ClaimEntry, Quantity, VariantSummary
from precision_lab.record.sweep import Job
from precision_lab.report import wording
from precision_lab.report.figures import pareto, style
from precision_lab.report.figures.pareto import Point
from precision_lab.report.rendering import Figure, embed, render, weights_text

PAGE = "index.html"
_NOTHING = Quantity(None)
_AS_STORED = "as stored"
_VERDICTS = ("supported", "refuted", "inconclusive")


@dataclass(frozen=True)
class Row:
    """A variant of a job, with its number on the page and in the figure.

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
    """A job on the page. link: to its report, relative to the page; empty if it has none."""

    name: str
    folder: Path
    swept: Mapping[str, str]
    trouble: str
    link: str
    rows: Sequence[Row]


def write(jobs: Sequence[Job], swept: Mapping[str, Mapping[str, str]], sweep: Path) -> Path:
    """Writes `index.html` and the figures of a sweep into its folder; returns the path of the page.

    swept: for each job by name, the overrides that are not the same in all jobs. At least one job has a run. It reads
    manifests and summaries only, so the page can be made again at any time; the same files give the same bytes. Raises
    InputError for a file that cannot be read, or a folder that cannot be written.
    """
    runs = {job.name: job.run for job in jobs if job.run is not None}
    points = _points(runs)
    fronts = pareto.fronts([point for own in points.values() for point in own.values()])
    metrics = list(dict.fromkeys(n for run in runs.values() for _, entry in _listed(run) for n in entry.metrics))
    entries = [
        Entry(
            name=job.name,
            folder=job.folder,
            swept=swept[job.name],
            trouble=job.trouble,
            link=_link(job.folder / "report.html", sweep),
            rows=[] if job.run is None else list(_rows(job.run, points[job.name], fronts, metrics)),
        )
        for job in jobs
    ]
    result = _the_same([run.layout.result.title for run in runs.values()]) or "result"
    folder = sweep / "figures"
    with writing(folder):
        folder.mkdir(exist_ok=True)
    with style.theme():
        drawing = pareto.draw([point for own in points.values() for point in own.values()], result)
        (figure,) = embed([drawing], folder)
    page = sweep / PAGE
    write_text(page, _render(sweep, entries, runs, metrics, figure, result))
    return page


def _listed(run: Run) -> list[tuple[str, VariantSummary]]:
    """The variants of a run but its reference, or that alone; none for a run that has not been judged yet."""
    found = dict(run.summary.variants) if run.summary else {}
    return [(name, entry) for name, entry in found.items() if name != run.reference] or list(found.items())


def _points(runs: Mapping[str, Run]) -> dict[str, dict[str, Point]]:
    """The points of all variants by job and variant, numbered from 1 in the order of the table."""
    points: dict[str, dict[str, Point]] = {}
    number = 0
    for job, run in runs.items():
        points[job] = {}
        for name, entry in _listed(run):
            number += 1
            stored = _stored(run, name)
            points[job][name] = Point(
                number=number,
                variant=name,
                drift=entry.latent_rel_l2.value,
                seconds=entry.latency.median_s if entry.latency else None,
                weight_bytes=stored.bytes if stored else None,
            )
    return points


def _stored(run: Run, variant: str) -> Storage | None:
    stated = run.manifest.variants.get(variant)
    return stated.stored(run.layout.default) if stated else None


def _rows(
    run: Run, points: Mapping[str, Point], fronts: Mapping[str, Sequence[int]], metrics: Sequence[str]
) -> Iterator[Row]:
    claims = run.summary.claims if run.summary else ()
    for name, entry in _listed(run):
        computed_in, weights = wording.dtype(entry.dtype)
        weights = "" if entry.dtype.weights == _AS_STORED else weights
        number = points[name].number
        yield Row(
            number=number,
            name=name,
            entry=entry,
            computed_in=computed_in,
            weights=weights,
            stored=_stored(run, name),
            metrics=[entry.metrics.get(metric, _NOTHING) for metric in metrics],
            claims=[claim for claim in claims if claim.subject == name],
            is_baseline=name == run.manifest.baseline,
            on_front=any(number in front for front in fronts.values()),
        )


def _link(page: Path, sweep: Path) -> str:
    return quote(os.path.relpath(page, sweep).replace(os.sep, "/")) if page.is_file() else ""


def _render(
    sweep: Path,
    entries: Sequence[Entry],
    runs: Mapping[str, Run],
    metrics: Sequence[str],
    figure: Figure,
    result: str,
) -> str:
    rows = [row for entry in entries for row in entry.rows]
    manifests = [run.manifest for run in runs.values()]
    machines = list(dict.fromkeys(manifest.environment.machine for manifest in manifests))
    badges = dict.fromkeys((m.checkpoint.weights, weights_text(m.checkpoint)) for m in manifests)
    return render(
        "sweep.html",
        name=", ".join(dict.fromkeys(manifest.experiment for manifest in manifests)),
        folder=sweep.resolve().name,
        entries=entries,
        unfinished=[entry.name for entry in entries if entry.trouble],
        unsound=[(name, e.text) for name, run in runs.items() for e in (run.summary.health if run.summary else ())],
        started=min((manifest.started for manifest in manifests if manifest.started), default=""),
        machines=machines,
        versions=list(dict.fromkeys(m.environment.mlx for m in manifests if m.environment.mlx)),
        commits=list(dict.fromkeys(_commit(manifest) for manifest in manifests if manifest.environment.commit)),
        badges=list(badges),
        has_stored=any(row.stored for row in rows),
        has_pictures=any(run.layout.picture for run in runs.values()),
        has_claims=any(row.claims for row in rows),
        is_timed=any(row.entry.latency for row in rows),
        metrics=[metric.replace("_", " ") for metric in metrics],
        verdicts=_VERDICTS,
        overlapping=_overlapping(manifests),
        result=result,
        figures=[figure],
    )


def _commit(manifest: Manifest) -> str:
    return f"{(manifest.environment.commit or '')[:10]}{' with local changes' if manifest.environment.dirty else ''}"


def _the_same(values: Sequence[str]) -> str:
    """The value that all of these are; empty if they are not the same."""
    return values[0] if len(set(values)) == 1 else ""


def _overlapping(manifests: Sequence[Manifest]) -> int:
    """The number of runs during which another ran on a device of the same name, maybe that of another machine."""
    spans = [
        (m.environment.machine, datetime.fromisoformat(m.started), datetime.fromisoformat(m.finished))
        for m in manifests
        if m.started and m.finished
    ]
    return sum(
        any(one is not other and one[0] == other[0] and one[1] < other[2] and other[1] < one[2] for other in spans)
        for one in spans
    )
