"""Results as Markdown for a pull request: verdicts, one table, links. Everything from users and files is literal.

GitHub takes comments of up to 65,536 characters. Lists and tables are cut to fit, and say how much is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from precision_lab.analysis.history import History
from precision_lab.analysis.markdown import link, literal, source, table, within
from precision_lab.analysis.sensitivity import candidates_of, ranking
from precision_lab.record import gate
from precision_lab.record.culprits import Culprits
from precision_lab.record.gate import GateVerdict
from precision_lab.record.manifest import Checkpoint, Environment, Manifest
from precision_lab.record.origin import short
from precision_lab.record.run import Run
from precision_lab.record.scan import Scan
from precision_lab.record.search import Search
from precision_lab.record.summary import ClaimEntry, Quantity, Summary, VariantSummary
from precision_lab.report import culprits, history, scan, search, survival
from precision_lab.report.conclusion import evidence
from precision_lab.report.entries import Collected
from precision_lab.report.wording import MISSING, counted, fixed, interval, moment, number, size

FILE, INDEX = "report.md", "index.md"
_LIST = 20_000
"""The most characters of a list or a table."""

_TEXT = 400
_ENDS = 5
_NUMBERS = frozenset({"drift", "PSNR, dB", "amax", "non-finite", "time ratio", "memory"})


def of_run(run: Run, summary: Summary, reasons: Sequence[str]) -> str:
    """The Markdown of a run: what it is, why its exit code is 1, a line for each claim, a row for each variant.

    reasons: of exit code 1.
    """
    manifest = run.manifest
    judged = GateVerdict.read(run.path)
    return _document(
        _heading(manifest.experiment, manifest.checkpoint),
        _facts(manifest.environment, manifest.started),
        f"**{literal(run.standing)}.**" if run.standing else "",
        _listed("**Exit code 1**", [literal(_cut(reason)) for reason in reasons]),
        _gate(judged, run.path) if judged else "",
        _claims(summary.claims),
        _variants(run, summary),
        _note(run),
        _links(run.path),
    )


def of_scan(found: Scan) -> str:
    """The Markdown of a scan of sensitivity: the worst and the best groups of each candidate."""
    tables = []
    for candidate in candidates_of(found.sensitivity):
        ranked = ranking(found.sensitivity, candidate)
        rows = [scan.cells(row) for row in scan.ends(ranked, _ENDS)]
        tables += [f"**{literal(scan.title(candidate, ranked))}**", _rows(scan.HEADINGS, rows)]
    return _of_manifest(found.path, found.manifest, *tables, _listed("", map(literal, scan.remarks(found))))


def of_search(found: Search) -> str:
    """The Markdown of a search: its recipes, and what it says of them."""
    rows = _rows(search.HEADINGS, search.cells(found))
    said = _listed("", map(literal, search.sentences(found)))
    return _of_manifest(found.path, found.manifest, f"**{literal(search.title(found))}**", rows, said)


def of_culprits(folder: Path) -> str:
    """The Markdown of a search for culprits. Raises InputError for a folder without a finished one."""
    manifest, found = Manifest.read(folder), Culprits.read(folder)
    rows = _rows(culprits.HEADINGS, culprits.cells(found)) if found.culprits else ""
    said = _listed("", map(literal, culprits.statements(found)))
    return _of_manifest(folder, manifest, f"**{literal(culprits.title(found))}**", rows, said)


def of_survival(view: survival.View, folder: Path) -> str:
    """The Markdown of what arrives of a change of weights in each format."""
    found = view.found
    said = [literal(line) for line in survival.statements(view, verdicts=False)]
    return _document(
        _heading(found.experiment, found.checkpoint),
        _facts(found.environment, found.created),
        f"**{literal(survival.title(view))}**",
        _claims(view.claims),
        _rows(survival.BRIEF, survival.brief(view)),
        literal(survival.WORDS),
        _listed("", said),
        _links(folder),
    )


def of_history(log: History, steps: pd.DataFrame, page: Path) -> str:
    """The Markdown of a gate's history: the commits at which ranges stepped. page: the page on it, drawn or not."""
    rows = [
        (each.commit, str(each.count), each.sites[0]["address"], each.sites[0]["step"])
        for each in history.changes(log, steps)
    ]
    last = log.runs.iloc[-1]
    return _document(
        f"## Gate history {literal(_cut(page.stem))}: {len(log.runs)} runs, the last {literal(last['verdict'])}",
        _rows(("commit", "series", "the largest", "bits"), rows) if rows else "No range stepped.",
        _links(page.parent, page.name),
    )


def _cut(text: str) -> str:
    """`text` on one line, cut off after `_TEXT` characters."""
    line = " ".join(text.split())
    return line if len(line) <= _TEXT else f"{line[: _TEXT - 3]}..."


def of_index(found: Collected, title: str) -> str:
    """The Markdown of an index of runs: a row for each."""
    rows = []
    for entry in found.entries:
        facts = entry.member.facts
        about = (facts.experiment, moment(facts.started), facts.checkpoint.name) if facts else (MISSING,) * 3
        drift, time = (
            " to ".join(dict.fromkeys(text(end) for end in ends)) if ends else MISSING
            for ends, text in ((entry.drift, number), (entry.time, _ratio))
        )
        verdicts = counted(facts.verdicts) if facts else ""
        status = "; ".join((entry.status, *entry.remarks))
        rows.append((entry.name, *about, entry.weights, entry.commit, status, verdicts, drift, time))
    header = ("run", "experiment", "started", "model", "weights", "commit", "status", "claims", "drift", "time ratio")
    linked = [link(entry.name, entry.link) for entry in found.entries if entry.link]
    return _document(
        f"## {literal(_cut(title))}",
        _rows(header, rows),
        "Drift: final rel. L2; time ratio: to the baseline of the run. Least to most over variants; lower is better.",
        f"Reports: {', '.join(within(linked, _LIST))}" if linked else "",
    )


def _document(*blocks: str) -> str:
    return "\n\n".join(block for block in blocks if block) + "\n"


def _of_manifest(folder: Path, manifest: Manifest, *blocks: str) -> str:
    head = _heading(manifest.experiment, manifest.checkpoint)
    return _document(head, _facts(manifest.environment, manifest.started), *blocks, _links(folder))


def _heading(experiment: str, checkpoint: Checkpoint) -> str:
    """Experiment, model, and plainly the origin of its weights."""
    about = ", ".join(_cut(part) for part in (short(checkpoint.weights), *checkpoint.notes))
    return f"## {literal(_cut(experiment))}: {literal(_cut(checkpoint.name))}, {literal(about)}"


def _facts(environment: Environment, started: str) -> str:
    local = " with local changes" if environment.dirty else ""
    facts = (
        environment.commit and f"commit {environment.commit[:10]}{local}",
        environment.machine,
        environment.mlx and f"MLX {environment.mlx}",
        moment(started),
    )
    return " · ".join(literal(_cut(fact)) for fact in facts if fact)


def _gate(judged: GateVerdict, folder: Path) -> str:
    found = f", {judged.deviations} deviation{'s' * (judged.deviations != 1)}" if judged.deviations else ""
    page = f" ({link('gate.md', 'gate.md')})" if (folder / "gate.md").is_file() else ""
    return f"**Gate {judged.word}**{found}{page}"


def _claims(claims: Sequence[ClaimEntry]) -> str:
    """One line for each claim: verdict, effect with interval, noise floor, source."""
    if not claims:
        return ""
    lines = []
    for claim in claims:
        floor = claim.noise_floor.value
        about = (evidence(claim), "" if floor is None else f"noise floor {number(floor)}")
        words = literal(_cut("; ".join(filter(None, about))))
        text = literal(_cut(claim.text.rstrip(".")))
        stated = f"{literal(_cut(claim.id))}: {text}"
        where = source(_cut(claim.source))
        lines.append(f"**{literal(claim.verdict)}** {stated} ({words})" + (f" [{where}]" if where else ""))
    return _listed(f"**Claims: {counted(claim.verdict for claim in claims)}**", lines)


def _variants(run: Run, summary: Summary) -> str:
    layout = run.layout
    header = ["variant", "dtype", "techniques", "drift", *(["PSNR, dB"] if layout.picture else [])]
    header += ["amax", "non-finite", "time ratio", "memory"]
    rows = []
    for name, entry in summary.variants.items():
        memory = entry.peak_memory_bytes.value
        row = [name, entry.dtype.compute or MISSING, ", ".join(entry.techniques), _short(entry.latent_rel_l2)]
        row += [_short(entry.psnr_db)] if layout.picture else []
        row += [
            _short(entry.amax_final),
            _short(entry.num_nonfinite),
            _time(entry),
            size(None if memory is None else int(memory)),
        ]
        if entry.error:
            row[0] = f"{name} (raised: {entry.error})"
        rows.append(row)
    return _rows(header, rows)


def _note(run: Run) -> str:
    """What the columns are, and against what."""
    reference = run.manifest.reference
    better = "Lower is better, but for PSNR." if run.layout.picture else "Lower is better."
    return literal(
        f"Drift: relative L2 of the {run.layout.result.title} from the reference ({reference.variant}, "
        f"{reference.words}). Time ratio: to {run.manifest.baseline}, with its 95 % interval. {better}"
    )


def _ratio(value: float) -> str:
    return fixed(value, 3)


def _short(quantity: Quantity) -> str:
    return quantity.reason or MISSING if quantity.value is None else number(quantity.value)


def _time(entry: VariantSummary) -> str:
    timing = entry.latency
    if timing is None:
        return entry.latency_reason or MISSING
    if timing.verdict == "baseline" or timing.ci95 is None:
        return fixed(timing.ratio, 3) + (" (baseline)" if timing.verdict == "baseline" else "")
    return f"{fixed(timing.ratio, 3)} {interval(timing.ci95, 3)} {timing.verdict}"


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as long as `_LIST` allows."""
    head, rule, *lines = table(header, [[_cut(cell) for cell in row] for row in rows], _NUMBERS).splitlines()
    shown = within(lines, _LIST)
    text = "\n".join([head, rule, *shown])
    return text + (f"\n\nand {len(lines) - len(shown)} more rows" if len(shown) < len(lines) else "")


def _listed(title: str, lines: Iterable[str]) -> str:
    """A list of lines of Markdown as long as `_LIST` allows, below its title; empty without lines."""
    items = [f"- {line}" for line in lines]
    shown = within(items, _LIST)
    more = [f"- and {len(items) - len(shown)} more"] if len(shown) < len(items) else []
    text = "\n".join([*shown, *more])
    return f"{title}\n\n{text}" if title and items else text


def _links(folder: Path, page: str = "report.html") -> str:
    """The page on it, where it has been drawn; relative to the folder."""
    files = [page, "summary.json", gate.FILE]
    found = [link(name, name) for name in files if (folder / name).is_file()]
    return f"In the folder of the run: {', '.join(found)}" if found else ""
