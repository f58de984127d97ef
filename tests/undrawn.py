"""Runs without figures and pages, for tests that read the tables: drawing takes longer than a small run."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def undrawn() -> Iterator[None]:
    """Context manager in which a run of this process ends with its tables and its summary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("precision_lab.report.write", lambda run, beside=None: run.path / "report.html")
        yield
