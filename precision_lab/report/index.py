"""The index page of many runs: a row for each, a row for each variant, drift against cost, links to the reports.

A sweep's index is this page over its jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from precision_lab.record.collection import Member
from precision_lab.record.files import write_text, writing
from precision_lab.record.manifest import Manifest
from precision_lab.report.entries import Collected, collect, commit
from precision_lab.report.figures import pareto, style
from precision_lab.report.rendering import Figure, embed, render, weights_text

PAGE = "index.html"
_VERDICTS = ("supported", "refuted", "inconclusive")


def write(members: Sequence[Member], folder: Path, is_sweep: bool = True) -> tuple[Path, Collected]:
    """Writes `index.html` and its figures into `folder`; returns the path of the page and what is on it.

    is_sweep: whether the members are the jobs of a sweep, which the page then speaks of. It reads manifests and
    summaries only, so the page can be made again at any time; the same files give the same bytes. Raises InputError for
    a file that cannot be read, or a folder that cannot be written.
    """
    found = collect(members, folder)
    result = _the_same([run.layout.result.title for member in members if (run := member.job.run)]) or "result"
    figures = folder / "figures"
    with writing(figures):
        figures.mkdir(parents=True, exist_ok=True)
    with style.theme():
        (figure,) = embed([pareto.draw(found.points, result, found.time)], figures)
    page = folder / PAGE
    write_text(page, _render(folder, found, figure, result, is_sweep))
    return page, found


def _render(folder: Path, found: Collected, figure: Figure, result: str, is_sweep: bool) -> str:
    entries = found.entries
    rows = [row for entry in entries for row in entry.rows]
    facts = [entry.member.facts for entry in entries if entry.member.facts]
    runs = {entry.name: entry.member.job.run for entry in entries if entry.member.job.run}
    manifests = [run.manifest for run in runs.values()]
    environments = [each.environment for each in facts]
    return render(
        "index.html",
        noun="job" if is_sweep else "run",
        is_sweep=is_sweep,
        name=", ".join(dict.fromkeys(each.experiment for each in facts)),
        folder=folder.resolve().name,
        entries=entries,
        unfinished=[entry.name for entry in entries if entry.trouble],
        unsound=[(name, e.text) for name, run in runs.items() for e in (run.summary.health if run.summary else ())],
        started=min((each.started for each in facts if each.started), default=""),
        machines=list(dict.fromkeys(each.machine for each in environments)),
        versions=list(dict.fromkeys(each.mlx for each in environments if each.mlx)),
        commits=list(dict.fromkeys(filter(None, map(commit, environments)))),
        badges=list(dict.fromkeys((each.checkpoint.weights, weights_text(each.checkpoint)) for each in facts)),
        has_stored=any(row.stored for row in rows),
        has_pictures=any(run.layout.picture for run in runs.values()),
        has_claims=any(row.claims for row in rows),
        is_timed=any(row.entry.latency for row in rows),
        metrics=[metric.replace("_", " ") for metric in found.metrics],
        verdicts=_VERDICTS,
        several_models=len({manifest.checkpoint.fingerprint for manifest in manifests}) > 1,
        overlapping=_overlapping(manifests),
        result=result,
        figures=[figure],
    )


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
