"""A run as its folder holds it: manifest, tables, summary and configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from precision_lab.errors import InputError, nearest
from precision_lab.record import tables
from precision_lab.record.consistency import check_files
from precision_lab.record.files import RESTORE, advising, read_text
from precision_lab.record.layout import Layout
from precision_lab.record.lock import holder_of
from precision_lab.record.manifest import Manifest
from precision_lab.record.summary import Summary

CONFIG = "config.yaml"


class Tables:
    """The tables of a run by name. Each is read when it is first used, and cached."""

    def __init__(self, read: Callable[[str], pd.DataFrame]):
        self._read = read
        self._loaded: dict[str, pd.DataFrame] = {}

    @classmethod
    def of(cls, frames: Mapping[str, pd.DataFrame]) -> Tables:
        """Tables that are in memory; one that is not among them is empty."""
        return cls(lambda name: frames.get(name, tables.empty(name)))

    def __getitem__(self, name: str) -> pd.DataFrame:
        """The table, finished or not; empty with its leading columns if the run has none of that name."""
        if name not in self._loaded:
            self._loaded[name] = self._read(name)
        return self._loaded[name]


@dataclass(frozen=True)
class Run:
    """A run, finished or not. Nothing here needs a model."""

    path: Path
    manifest: Manifest
    tables: Tables

    @classmethod
    def open(cls, path: Path) -> Run:
        """The run in a folder. Raises InputError if it holds none, or its manifest cannot be read.

        Tables are read when they are used; `whole` reads all of them at once.
        """
        try:
            if not path.is_dir():
                siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
                what = "not a folder" if path.exists() else "no such folder"
                raise InputError(f"{path} is not the folder of a run: {what}. {nearest(path.name, siblings)}")
            return cls(path, Manifest.read(path), Tables(lambda name: tables.read(path, name)))
        except OSError as error:  # a name that is too long, a folder that may not be entered
            raise InputError(f"{path} is not the folder of a run: {error.strerror}") from error

    def whole(self) -> Run:
        """This run. Raises InputError that names the file if one is missing or damaged.

        A command that writes into the folder asks for this first, so that nothing is half-written.
        """
        check_files(self)
        return self

    @property
    def layout(self) -> Layout:
        return self.manifest.layout

    @property
    def reference(self) -> str:
        """The variant that drift is measured against."""
        return self.manifest.reference.variant

    @property
    def activations(self) -> pd.DataFrame:
        return self.tables["activations"]

    @property
    def drift(self) -> pd.DataFrame:
        return self.tables["drift"]

    @property
    def generations(self) -> pd.DataFrame:
        """One row for each generation: its picture, or the result of its last step."""
        return self.tables["generations"]

    @property
    def nonfinite(self) -> pd.DataFrame:
        """One row for each generation with values that are not finite: where the first one arose."""
        return self.tables["nonfinite"]

    @property
    def latency(self) -> pd.DataFrame:
        return self.tables["latency"]

    @property
    def sketches(self) -> pd.DataFrame:
        """The table of pinned cases."""
        return self.tables["sketches"]

    @cached_property
    def summary(self) -> Summary | None:
        """The content of summary.json; None for a run that has not been judged yet."""
        return Summary.read(self.path)

    @cached_property
    def config(self) -> str:
        """The text of config.yaml. Raises InputError if it is missing or cannot be read."""
        with advising(RESTORE):
            return read_text(self.path / CONFIG)

    @property
    def standing(self) -> str:
        """A sentence on a run that is not complete: how it ended, and how it goes on; empty for a complete one."""
        status = self.manifest.status
        if status == "complete":
            return ""
        holder = holder_of(self.path)
        if holder is not None:
            return f"{status}: {holder} is still writing this run, so its tables are not complete"
        how = "ended in the middle" if status == "running" else f"{status}"
        return (
            f"{how}: this run was not finished, so its tables are not complete; its command with resume=true continues"
        )

    def completed(self) -> Run:
        """This run. Raises InputError if it was not finished."""
        if self.manifest.status != "complete":
            raise InputError(
                f"The run in {self.path} is {self.manifest.status}, expected a complete one. "
                "Continue it with its own command and resume=true, or run it again"
            )
        return self
