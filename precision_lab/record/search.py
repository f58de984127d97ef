"""A search that a folder holds: its manifest, its tables, and what it says of its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from precision_lab.errors import InputError
from precision_lab.record import tables
from precision_lab.record.files import RESTORE, advising, read_json, write_json
from precision_lab.record.manifest import SCHEMA_VERSION, Manifest, typed
from precision_lab.record.search_tables import CHOICES, OF_A_SEARCH, RECIPES, TRIALS

FILE = "search.json"
TECHNIQUES = "technique"
"""The folder of the recipes: options of the configuration group of this name, with `--config-dir`."""


@dataclass(frozen=True)
class Swap:
    """A swap that local exchange kept: what it raised and lowered, and the ratio of the drift after it to before."""

    raised: str
    lowered: str
    ratio: float


@dataclass(frozen=True)
class Findings:
    """search.json.

    - strategy; dtype: that all was computed in; limits: bytes by budget. found: by budget, the name of its recipe.
    - gaps: by budget, the proven relative distance of the knapsack's prediction from the best one.
    - noise_floor: relative change of a trial's drift that means nothing. swaps: by budget, those that were kept.
    - components: that are searched. scan: the folder of the sensitivities, null for none. remarks: sentences.
    - patterns: by recipe and technique, the sites.
    """

    strategy: str
    dtype: str
    limits: Mapping[str, int]
    found: Mapping[str, str]
    gaps: Mapping[str, float]
    noise_floor: float
    swaps: Mapping[str, Sequence[Swap]]
    components: Sequence[str]
    scan: str | None
    remarks: Sequence[str] = ()
    patterns: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes the file, whole or not at all."""
        write_json(folder / FILE, {"schema_version": SCHEMA_VERSION, **asdict(self)})


@dataclass(frozen=True)
class Search:
    """The tables are described in `search_tables`."""

    path: Path
    manifest: Manifest
    findings: Findings
    trials: pd.DataFrame
    recipes: pd.DataFrame
    choices: pd.DataFrame

    @classmethod
    def open(cls, path: Path) -> Search:
        """Raises InputError if the folder holds no finished search, or a file that cannot be read."""
        manifest = Manifest.read(path)
        with advising(RESTORE):
            findings = typed(Findings, read_json(path / FILE), path / FILE)
        for name in OF_A_SEARCH:
            if not tables.merged_path(path, name).exists():
                raise InputError(f"{tables.merged_path(path, name)} is missing. {RESTORE}")
        found = {name: tables.read(path, name) for name in OF_A_SEARCH}
        return cls(path, manifest, findings, found[TRIALS], found[RECIPES], found[CHOICES])


def holds_search(path: Path) -> bool:
    """Whether a folder holds a finished search."""
    return (path / FILE).is_file()
