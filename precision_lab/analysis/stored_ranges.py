"""Ranges that tests stored: one JSON file a test module, bands by test and backend, one band a line."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from precision_lab.analysis.gate.bands import from_records, to_records
from precision_lab.errors import InputError

SCHEMA_VERSION = 1
# of a band's address a test needs the site and the port alone
_NO_ADDRESS = {"variant": "-", "component": "-"}


@dataclass(frozen=True)
class StoredRanges:
    """The bands of one test on one backend, and what they were learned on."""

    bands: pd.DataFrame
    device: str
    mlx: str


class RangeFile:
    """The file of one test module; it need not exist before something is stored."""

    def __init__(self, path: Path):
        self.path = path

    def of(self, test: str) -> dict[str, StoredRanges]:
        """What is stored for a test, by backend. Raises InputError for a file of another form."""
        entries = self._read().get(test, {})
        return {
            backend: StoredRanges(
                from_records([_NO_ADDRESS | band for band in entry["bands"]]), entry["device"], entry["mlx"]
            )
            for backend, entry in entries.items()
        }

    def store(self, test: str, backend: str, ranges: StoredRanges) -> None:
        """Puts the ranges in the place of those of the same test and backend; processes may do so at the same time."""
        bands = [{k: v for k, v in band.items() if k not in _NO_ADDRESS} for band in to_records(ranges.bands)]
        entry = {"device": ranges.device, "mlx": ranges.mlx, "bands": bands}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.parent):
            tests = self._read()
            tests[test] = {**tests.get(test, {}), backend: entry}
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, suffix=".tmp", delete=False) as file:
                file.write(_text(tests))
            os.chmod(file.name, 0o644)
            os.replace(file.name, self.path)

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        try:
            content = json.loads(self.path.read_text())
            found, tests = content["schema_version"], content["tests"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.path} holds no activation ranges ({error}). Delete it and store them anew"
            ) from error
        if found != SCHEMA_VERSION:
            raise InputError(
                f"{self.path} has schema_version {found}, expected {SCHEMA_VERSION}. Delete it and store ranges anew"
            )
        return dict(tests)


def _text(tests: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Strict JSON, indented down to the bands, of which each is a line: a change reads well in a diff."""
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
