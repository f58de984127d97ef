"""What the entries of a manifest must be beyond their types, and the files that a complete run has."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Set
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precision_lab.errors import InputError
from precision_lab.record import images, tables
from precision_lab.record.address import split_address
from precision_lab.record.files import RESTORE
from precision_lab.record.glob import compile_glob
from precision_lab.record.scan_tables import GROUPS

if TYPE_CHECKING:
    from precision_lab.record.layout import Layout
    from precision_lab.record.manifest import Manifest
    from precision_lab.record.run import Run

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
"""Names of experiments, variants and backends: they are parts of the names of files."""

_MOST_BLOCKS = 1_000_000
SKETCHES = "sketches"


def check(manifest: Manifest, path: Path) -> None:
    """Raises InputError that names the first entry that no run writes. path: of the file, for the message."""
    for where, wrong in _faults(manifest):
        raise InputError(f"{path}: {where} {wrong}. {RESTORE}")


def _faults(manifest: Manifest) -> Iterator[tuple[str, str]]:
    named = {"experiment": manifest.experiment, "environment.backend": manifest.environment.backend}
    for where, name in (*named.items(), *(("variants", name) for name in manifest.variants)):
        if not NAME.fullmatch(name):
            yield where, f"holds the name {name[:40]!r}, expected letters, digits, '_', '.', '+' and '-'"
    if not all(0 <= seed < 2**63 for seed in manifest.seeds):
        yield "seeds", "holds a number that is not from 0 to 2^63 - 1"
    if not 0 < manifest.latency_margin < math.inf:
        yield "latency_margin", f"is {manifest.latency_margin}, expected a number above 0"
    for where, time in (("started", manifest.started), ("finished", manifest.finished)):
        if time and not _is_time(time):
            yield where, f"is {time[:40]!r}, expected a time like 2026-01-02T03:04:05+00:00"
    for variant in manifest.variants.values():
        for where, stored in (("linear_weights", variant.linear_weights), ("weights", variant.weights)):
            for component, storage in stored.items():
                if not (storage.number >= 0 and storage.bytes >= 0 and 0 <= storage.bits_per_weight < math.inf):
                    yield f"{where} of {component[:40]}", "holds a negative number"
    if manifest.status == "complete" and manifest.baseline not in manifest.variants:
        yield "baseline", f"is {manifest.baseline[:40]!r}, which is not among the variants"
    for name in manifest.columns:
        if not NAME.fullmatch(name):
            yield "columns", f"holds the name {name[:40]!r} of a table"
    yield from _faults_of_layout(manifest.layout)


def _faults_of_layout(layout: Layout) -> Iterator[tuple[str, str]]:
    if layout.default not in layout.components:
        yield "layout.default", f"is {layout.default[:40]!r}, which is not among the components"
    if not 0 <= layout.depth <= _MOST_BLOCKS:
        yield "layout.depth", f"is {layout.depth}, expected a number of blocks"
    if not layout.result.site:
        yield "layout.result.address", f"is {layout.result.address[:40]!r}, expected component:site"
    patterns = {
        "layout.blocks": [split_address(pattern, layout.default)[1] for pattern in layout.blocks],
        "layout.joint": [layout.joint] if layout.joint else [],
        "layout.streams": [stream.sites for stream in layout.streams.values() if stream.sites],
        "layout.adds": list(layout.adds.values()),
    }
    for where, globs in patterns.items():
        for glob in globs:
            try:
                compile_glob(glob)
            except InputError as error:
                yield where, f"holds a malformed pattern: {error}"


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def check_files(run: Run) -> None:
    """Reads all tables of a run, and looks at its pictures. Raises InputError that names the first faulty file.

    A complete run must have all files; in one that is not finished, those that are there must be sound.
    """
    manifest = run.manifest
    if tables.merged_path(run.path, GROUPS).is_file():
        raise InputError(f"{run.path} holds a scan of sensitivity, expected the run of an experiment")
    is_complete = manifest.status == "complete"
    expected = [*tables.LEADING, *(name for name in manifest.columns if name not in tables.LEADING)]
    expected += [SKETCHES] if manifest.pinned is not None else []
    for name in dict.fromkeys(expected):
        file = run.path / f"{name}.parquet"
        if is_complete and not file.exists():
            raise InputError(f"{file} is missing, and {run.path} holds a complete run. {RESTORE}")
        _check_labels(run, name, file)
        absent = [column.name for column in manifest.columns.get(name, ()) if column.name not in run.tables[name]]
        if absent and len(run.tables[name]):
            raise InputError(f"{file} has no column {absent[0]!r}, which manifest.json declares. {RESTORE}")
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for picture, case in _pictures(run) if manifest.layout.picture is not None else ():
        if is_complete and not picture.exists():
            raise InputError(f"{picture} is missing, and {run.path} holds a complete run. {RESTORE}")
        if picture.exists() and (size := images.verify(picture)) != sizes.setdefault(case, size):
            raise InputError(f"{picture} has {size} pixels, others of its case {sizes[case]}. {RESTORE}")
    _ = run.config


def _check_labels(run: Run, name: str, file: Path) -> None:
    """Raises InputError for rows of a variant, prompt or seed that the manifest does not have."""
    table, manifest = run.tables[name], run.manifest
    known: Mapping[str, Set[Any]] = {
        "variant": set(manifest.variants),
        "prompt_id": set(range(len(manifest.prompts))),
        "seed": set(manifest.seeds),
        "reference": set(manifest.variants),
    }
    for column, values in known.items() if name != SKETCHES else ():
        strange = [value for value in table[column].unique() if value not in values] if column in table else []
        if strange:
            raise InputError(
                f"{file}: its column {column!r} holds {str(strange[0])[:40]!r}, which manifest.json does not name. "
                "Restore the two files, or run again"
            )


def _pictures(run: Run) -> Iterator[tuple[Path, tuple[int, int]]]:
    """The picture of every generation, with its prompt and seed."""
    manifest = run.manifest
    for variant in manifest.variants:
        if variant not in manifest.errors:
            for prompt_id in range(len(manifest.prompts)):
                for seed in manifest.seeds:
                    yield images.picture_path(run.path, variant, prompt_id, seed), (prompt_id, seed)
