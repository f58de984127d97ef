"""A scan of sensitivity that a folder holds: its manifest and its tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from precision_lab.errors import InputError
from precision_lab.record import tables
from precision_lab.record.files import RESTORE
from precision_lab.record.manifest import Manifest
from precision_lab.record.scan_tables import GROUPS, KEPT, NOISE, SENSITIVITY, UNFIT


@dataclass(frozen=True)
class Scan:
    """The tables are described in `scan_tables`."""

    path: Path
    manifest: Manifest
    sensitivity: pd.DataFrame
    noise: pd.DataFrame
    groups: pd.DataFrame
    unfit: pd.DataFrame

    @classmethod
    def open(cls, path: Path) -> Scan:
        """Raises InputError if the folder holds no complete scan, or a table that cannot be read."""
        manifest = Manifest.read(path)
        if manifest.status != "complete":
            raise InputError(
                f"{path} holds a scan that is not finished. `sensitivity resume=true out={path}`, with the settings of "
                "that scan, continues it"
            )
        for name in KEPT:
            if not tables.merged_path(path, name).exists():
                raise InputError(f"{tables.merged_path(path, name)} is missing. {RESTORE}")
        found = {name: tables.read(path, name) for name in KEPT}
        return cls(path, manifest, found[SENSITIVITY], found[NOISE], found[GROUPS], found[UNFIT])


def holds_scan(path: Path) -> bool:
    """Whether a folder holds a scan, finished or not: its groups are written first."""
    return tables.merged_path(path, GROUPS).is_file()
