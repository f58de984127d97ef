"""benchmark.json: every sample with its environment, rewritten after each addition.

    {"parts": {"forward_mlx.0": {"environment": {...}, "complete": true, "rows": [{...}, ...]}, ...}}

Only one process runs at a time, so the last writer has all data. Repeating a part replaces its old rows and keeps the
other parts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FILE = "benchmark.json"


class PartWriter:
    """The rows of one part."""

    def __init__(self, folder: Path, name: str, environment: Mapping[str, Any]):
        self._file = folder / FILE
        self._record = read(folder)
        self._part: dict[str, Any] = {"environment": dict(environment), "complete": False, "rows": []}
        self._record["parts"][name] = self._part
        self.save()

    def add(self, kind: str, **values: Any) -> None:
        """Adds a row; `save` writes it."""
        self._part["rows"].append({"kind": kind, **values})

    def complete(self, **environment: Any) -> None:
        """Marks the part as complete, and records the environment at its end."""
        self._part["environment"].update(environment)
        self._part["complete"] = True
        self.save()

    def save(self) -> None:
        write(self._file, self._record)


def read(folder: Path) -> dict[str, Any]:
    """The current record in the folder."""
    file = folder / FILE
    if not file.exists():
        return {"parts": {}}
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


def write(file: Path, record: Mapping[str, Any]) -> None:
    """Writes one row per line. Replaces the file atomically, so that an interrupted process leaves the previous one."""
    parts = ",\n".join(f" {json.dumps(name)}: {_part_text(part)}" for name, part in record["parts"].items())
    partial = file.with_suffix(".partial")
    partial.write_text('{"parts": {\n' + parts + "\n}}\n", encoding="utf-8")
    os.replace(partial, file)


def _part_text(part: Mapping[str, Any]) -> str:
    head = {key: value for key, value in part.items() if key != "rows"}
    rows = ",\n".join("   " + json.dumps(row) for row in part["rows"])
    return f'{json.dumps(head)[:-1]}, "rows": [\n{rows}]}}'


def rows(record: Mapping[str, Any], part: str, kind: str) -> Iterator[Row]:
    """Rows of one kind from all processes of a part (`forward_mlx` has .0 and .1), with `process` added."""
    for name, content in record["parts"].items():
        stem, _, process = name.partition(".")
        if stem == part:
            yield from ({**row, "process": int(process or 0)} for row in content["rows"] if row["kind"] == kind)
