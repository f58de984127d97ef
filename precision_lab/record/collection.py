"""The results below a folder: runs, and what other commands leave, each in a folder of its own, sound or not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from precision_lab.errors import InputError
from precision_lab.record import manifest, survival
from precision_lab.record.culprits import holds_culprits
from precision_lab.record.gate import GateVerdict
from precision_lab.record.scan import holds_scan
from precision_lab.record.search import holds_search
from precision_lab.record.sweep import ERROR, Job, natural, read_job

if TYPE_CHECKING:
    from precision_lab.record.manifest import Checkpoint, Environment

_DEPTH = 4
"""How many folders deep results are looked for: those of sweeps in a folder of sweeps are three deep."""

_KINDS = {
    "scan of sensitivity": holds_scan,
    "search for culprits": holds_culprits,
    "search for recipes": holds_search,
}


@dataclass(frozen=True)
class Facts:
    """What results were made of, and how they ended. verdicts: of claims that have been judged."""

    experiment: str
    started: str
    checkpoint: Checkpoint
    environment: Environment
    status: str
    verdicts: Sequence[str] = ()


@dataclass(frozen=True)
class Member:
    """Results in a folder: of a run, of a job of a sweep, or of another command. job.run: None for what is no run.

    kind: what they are, empty for a run. facts: None where they cannot be read. gate: its verdict, if there is one.
    broken: why they cannot be read, in a sentence.
    """

    job: Job
    kind: str = ""
    facts: Facts | None = None
    gate: GateVerdict | None = None
    broken: str = ""
    swept: Mapping[str, str] = field(default_factory=dict)

    @property
    def trouble(self) -> str:
        """Why there are no complete results, in a sentence; empty if there are."""
        if self.broken or self.facts is None:
            return self.broken or self.job.trouble
        if self.facts.status == "complete":
            return ""
        return self.job.trouble if self.job.run else self.facts.status


def find(folder: Path) -> list[Path]:
    """The folders of results at or below a folder, in natural order; what is inside of one belongs to it."""
    return sorted(_below(folder, _DEPTH), key=lambda path: natural(str(path)))


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if any((folder / name).is_file() for name in (manifest.FILE, survival.FILE, ERROR)):
        yield folder
    elif depth:
        try:
            inside = [Path(entry) for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
        except OSError:  # a folder that may not be entered holds nothing for us
            return
        for path in inside:
            yield from _below(path, depth - 1)


def read(folders: Mapping[str, Path]) -> list[Member]:
    """The results of folders by their names, in the same order. A file that cannot be read is said of its folder."""
    return [_member(name, folder) for name, folder in folders.items()]


def of_job(job: Job, swept: Mapping[str, str]) -> Member:
    """A job of a sweep. Raises InputError for a file that cannot be read."""
    return Member(job, facts=_facts(job), gate=GateVerdict.read(job.folder), swept=swept)


def _member(name: str, folder: Path) -> Member:
    empty = Job(name, folder, {}, None, None)
    try:
        if survival.holds_survival(folder):
            return Member(empty, "survival", _facts_of_survival(folder))
        job = read_job(name, folder, ())
        kind = next((kind for kind, holds in _KINDS.items() if holds(folder)), "")
        facts, gate = _facts(job), GateVerdict.read(folder)
        return Member(Job(name, folder, {}, None if kind else job.run, job.error), kind, facts, gate)
    except InputError as error:
        return Member(empty, broken=str(error).splitlines()[0].replace(f"{folder}{os.sep}", ""))


def _facts(job: Job) -> Facts | None:
    if job.run is None:
        return None
    about, summary = job.run.manifest, job.run.summary
    verdicts = [claim.verdict for claim in summary.claims] if summary else []
    return Facts(about.experiment, about.started, about.checkpoint, about.environment, about.status, verdicts)


def _facts_of_survival(folder: Path) -> Facts:
    found = survival.Findings.read(folder)
    verdicts = [str(claim.get("verdict", "")) for claim in found.claims]
    return Facts(found.experiment, found.created, found.checkpoint, found.environment, found.status, verdicts)
