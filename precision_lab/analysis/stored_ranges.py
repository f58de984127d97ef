"""Ranges that tests have stored: one JSON file a test module, bands and sketches by test and backend, one a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from precision_lab.analysis.gate import bands, sketches
from precision_lab.analysis.gate.rows import UNKNOWN
from precision_lab.errors import InputError
from precision_lab.record.files import read_json, write_text

SCHEMA_VERSION = 1
_BY_LINE = ("bands", "sketches")


@dataclass(frozen=True)
class StoredRanges:
    """The bands of one test on one backend, with the device and the MLX version that they were learned on.

    sketches: the table of `sketches.learn`, None if the test stored ranges only.
    """

    bands: pd.DataFrame
    device: str
    mlx: str
    sketches: pd.DataFrame | None = None


class RangeFile:
    """The file of one test module; it exists once something is stored."""

    def __init__(self, path: Path):
        self.path = path

    def of(self, test: str) -> dict[str, StoredRanges]:
        """The ranges that are stored for a test, by backend. Raises InputError for a file of another form."""
        entries = self._read().get(test, {})
        return {
            backend: StoredRanges(
                bands.from_records(entry["bands"], UNKNOWN),
                entry["device"],
                entry["mlx"],
                sketches.from_records(entry["sketches"], UNKNOWN) if "sketches" in entry else None,
            )
            for backend, entry in entries.items()
        }

    def store(self, test: str, backend: str, ranges: StoredRanges) -> None:
        """Replaces the ranges of the same test and backend; several processes may do so at the same time."""
        # with the site and the port, all that the address has
        entry = {"device": ranges.device, "mlx": ranges.mlx, "bands": bands.to_records(ranges.bands, UNKNOWN)}
        if ranges.sketches is not None:
            entry["sketches"] = sketches.to_records(ranges.sketches, UNKNOWN)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.parent):
            tests = self._read()
            tests[test] = {**tests.get(test, {}), backend: entry}
            write_text(self.path, _text(tests))

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        try:
            content = read_json(self.path)
            found, tests = content["schema_version"], content["tests"]
        except InputError as error:
            raise InputError(f"{error}. Delete it and store the ranges again") from error
        except (KeyError, TypeError) as error:
            raise InputError(f"{self.path} holds no activation ranges. Delete it and store them again") from error
        if found != SCHEMA_VERSION:
            raise InputError(
                f"{self.path} has schema_version {found}, expected {SCHEMA_VERSION}. Delete it and store ranges again"
            )
        return dict(tests)


def _text(tests: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Strict JSON, indented down to the bands and sketches, with one of them a line, so that a change reads well."""
    lines: list[str] = []

    def shortened(entry: Mapping[str, Any]) -> dict[str, Any]:
        short = dict(entry)
        for name in _BY_LINE:
            if name in entry:
                short[name] = ["\0"] * len(entry[name])
                lines.extend(json.dumps(record, allow_nan=False) for record in entry[name])
        return short

    short = {
        test: {backend: shortened(entry) for backend, entry in sorted(backends.items())}
        for test, backends in sorted(tests.items())
    }
    text = json.dumps({"schema_version": SCHEMA_VERSION, "tests": short}, indent=1)
    head, *tails = text.split(json.dumps("\0"))
    return head + "".join(line + tail for line, tail in zip(lines, tails, strict=True)) + "\n"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time: workers of pytest-xdist share the file of a module."""
    import fcntl  # Windows lacks it; there only storing fails

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
