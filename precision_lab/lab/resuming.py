"""What an interrupted run left, and whether a resumed run can build on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from precision_lab.errors import InputError
from precision_lab.lab.bench import part_name, reference_path
from precision_lab.lab.recorder import recorder_of
from precision_lab.lab.reference import ReferenceReader
from precision_lab.lab.spec import RunSpec, Variant
from precision_lab.lab.subject import Case
from precision_lab.record import images, tables
from precision_lab.record.files import advising
from precision_lab.record.layout import Layout

AGAIN = "Remove it: resume=true makes it again"
_OF_ALL_GENERATIONS = ("latency", "sketches")
"""Tables whose parts do not belong to one generation of a variant."""


def tables_of(spec: RunSpec) -> list[str]:
    """The tables of which every generation leaves a part."""
    leading = [name for name in tables.LEADING if name not in _OF_ALL_GENERATIONS]
    return list(dict.fromkeys([*leading, *(recorder_of(probe).table for probe in spec.probes.values())]))


def is_made(spec: RunSpec, layout: Layout, variant: Variant, case: Case) -> bool:
    """Whether everything that a generation leaves is there, merged into its table or not yet."""
    if layout.picture is not None and not _picture(spec, variant, case).exists():
        return False
    part = part_name(variant, case)
    return all(tables.is_written(spec.out, table, part) for table in tables_of(spec))


def is_done(spec: RunSpec, layout: Layout, variant: Variant, case: Case) -> bool:
    """Whether a generation need not be made. The reference's is repeated if a variant still needs its arrays."""
    needing: list[Variant] = []
    if variant.is_reference and not reference_path(spec.out, variant.name, case).exists():
        needing = [other for other in spec.all_variants if variant.name in other.needs]
    return all(is_made(spec, layout, other, case) for other in (variant, *needing))


def check(spec: RunSpec, layout: Layout) -> None:
    """Raises InputError that names the first file of the folder that is damaged, or no part of this run."""
    with advising(AGAIN):
        others = (part.parent.name for part in spec.out.glob("*/part-*.parquet"))
        for table in dict.fromkeys([*tables_of(spec), *_OF_ALL_GENERATIONS, *sorted(others)]):
            if tables.merged_path(spec.out, table).exists():
                tables.read(spec.out, table)
            else:
                _check_parts(spec, table)
        for variant, case in _generations(spec):
            if layout.picture is not None and (picture := _picture(spec, variant, case)).exists():
                images.verify(picture)
        for variant, case in _generations(spec):
            if variant.is_reference and (store := reference_path(spec.out, variant.name, case)).exists():
                ReferenceReader(store)


def _check_parts(spec: RunSpec, table: str) -> None:
    folder = spec.out / table
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is not a folder, expected parts of the table {table}")
    labels = {part_name(variant, case): (variant.name, case) for variant, case in _generations(spec)}
    for path in tables.parts_of(spec.out, table):
        rows = tables.read_part(path, table)
        if table in _OF_ALL_GENERATIONS:
            continue
        label = labels.get(path.stem.removeprefix("part-"))
        if label is None:
            raise InputError(f"{path} belongs to no generation of this run")
        _check_labels(path, rows, *label, {variant.name for variant, _ in _generations(spec)})


def _check_labels(path: Path, rows: pd.DataFrame, variant: str, case: Case, variants: set[str]) -> None:
    # the reference's part of drift holds the local errors of the others
    allowed = variants if rows.get("mode", pd.Series(dtype=object)).eq("teacher").any() else {variant}
    own: dict[str, set[Any]] = {"variant": allowed, "prompt_id": {case.prompt_id}, "seed": {case.seed}}
    for column, values in own.items():
        strange = set(rows[column]) - values
        if strange:
            raise InputError(f"{path} holds {str(min(strange, key=str))[:40]!r} in column {column!r}, not its own")


def _generations(spec: RunSpec) -> Iterator[tuple[Variant, Case]]:
    return ((variant, case) for variant in spec.all_variants for case in spec.cases)


def _picture(spec: RunSpec, variant: Variant, case: Case) -> Path:
    return images.picture_path(spec.out, variant.name, case.prompt_id, case.seed)
