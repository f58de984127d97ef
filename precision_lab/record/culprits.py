"""What the search for culprits found, in culprits.json of its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from precision_lab.errors import InputError
from precision_lab.record.files import RESTORE, advising, read_json, write_json
from precision_lab.record.manifest import SCHEMA_VERSION, typed

FILE = "culprits.json"
TRIALS = "trials.parquet"
"""One row for each trial and case, in the order of the runs."""

TECHNIQUE = "culprits"
"""The option of the configuration group `technique` in the folder: `--config-dir DIR technique=culprits`."""


@dataclass(frozen=True)
class Outcome:
    """A trial. value: what the criterion compares, the worst over its cases, or null. first_*: where its first value
    that was not finite arose, or null."""

    trial: str
    value: float | None = None
    finite: bool = True
    first_site: str | None = None
    first_port: str | None = None
    first_step: int | None = None


@dataclass(frozen=True)
class Culprit:
    """A group that must be spared. found: its place in the order of discovery, from 1. sites: patterns of its sites.

    without: the trial in which all groups of the set but this one are spared, which does not meet the criterion.
    can_be_replaced: whether the criterion holds without it if everything else is spared; null if not checked. instead:
    a group that will do in its place; null if no single one was found.
    """

    group: str
    found: int
    sites: Sequence[str]
    block: int | None
    operation: str | None
    without: Outcome
    can_be_replaced: bool | None = None
    instead: str | None = None


@dataclass(frozen=True)
class Validation:
    """The found variant on cases that the search has not seen. failing: those that do not meet the criterion."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    cases: int
    holds: bool
    failing: Sequence[str]
    outcome: Outcome


@dataclass(frozen=True)
class Culprits:
    """The result of a search; see `precision_lab.analysis.minimal.Minimal`.

    status: found, nothing or impossible. altered: what happens at groups that are not spared; spared: at those that
    are. nothing_spared, all_spared: the two ends. rest: patterns of the sites that need not be spared. bound: the most
    runs for as many groups. techniques: names in the recipe; empty without one. runs, checks, violations: numbers.
    """

    status: str
    criterion: str
    altered: str
    spared: str
    dtype: str
    groups: int
    sites: int
    nothing_spared: Outcome
    all_spared: Outcome
    culprits: Sequence[Culprit] = ()
    patterns: Sequence[str] = ()
    rest: Sequence[str] = ()
    runs: int = 0
    bound: int = 0
    checks: int = 0
    violations: int = 0
    fallback: bool = False
    left_out: int = 0
    is_minimal: bool = False
    is_only: bool | None = None
    validation: Validation | None = None
    techniques: Sequence[str] = ()

    def write(self, folder: Path) -> None:
        """Writes culprits.json, whole or not at all."""
        write_json(folder / FILE, {"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Culprits:
        """Raises InputError if the folder holds no finished search, or the file cannot be read."""
        if not (folder / FILE).exists():
            raise InputError(f"{folder} holds no finished search for culprits: there is no {FILE} in it")
        with advising(RESTORE):
            content = read_json(folder / FILE)
        return typed(cls, content, folder / FILE)


def holds_culprits(folder: Path) -> bool:
    """Whether a folder holds the result of a search."""
    return (folder / FILE).is_file()
