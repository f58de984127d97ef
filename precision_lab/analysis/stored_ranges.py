"""Ranges that tests have stored: one JSON file a test module, bands by test and backend, one band a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from precision_lab.analysis.gate.bands import from_records, to_records
from precision_lab.analysis.gate.rows import UNKNOWN
from precision_lab.errors import InputError
from precision_lab.record.files import read_json, write_text

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class StoredRanges:
    """The bands of one test on one backend, with the device and the MLX version that they were learned on."""

    bands: pd.DataFrame
    device: str
    mlx: str


class RangeFile:
    """The file of one test module; it exists once something is stored."""

    def __init__(self, path: Path):
        self.path = path

    def of(self, test: str) -> dict[str, StoredRanges]:
        """The ranges that are stored for a test, by backend. Raises InputError for a file of another form."""
        entries = self._read().get(test, {})
        return {
            backend: StoredRanges(from_records(entry["bands"], UNKNOWN), entry["device"], entry["mlx"])
            for backend, entry in entries.items()
        }

    def store(self, test: str, backend: str, ranges: StoredRanges) -> None:
        """Replaces the ranges of the same test and backend; several processes may do so at the same time."""
        bands = to_records(ranges.bands, UNKNOWN)  # with the site and the port, all that the address has
        entry = {"device": ranges.device, "mlx": ranges.mlx, "bands": bands}
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
    """Strict JSON, indented down to the bands, with one band a line, so that a change reads well in a diff."""
    short = {
        test: {backend: {**entry, "bands": ["\0"] * len(entry["bands"])} for backend, entry in sorted(backends.items())}
        for test, backends in sorted(tests.items())
    }
    text = json.dumps({"schema_version": SCHEMA_VERSION, "tests": short}, indent=1)
    bands = (
        json.dumps(band, allow_nan=False) for test in short for b in short[test] for band in tests[test][b]["bands"]
    )
    head, *tails = text.split(json.dumps("\0"))
    return head + "".join(band + tail for band, tail in zip(bands, tails, strict=True)) + "\n"


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
