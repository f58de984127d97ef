"""Runs without figures and pages, for tests that read the tables: drawing takes longer than a small run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from precision_lab.report.figures import style


@contextmanager
def undrawn() -> Iterator[None]:
    """Context manager in which a run of this process ends with its tables and its summary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("precision_lab.report.write", lambda run, beside=None: run.path / "report.html")
        yield


@contextmanager
def unrendered() -> Iterator[None]:
    """Context manager in which pages have all their text, and their figures are built but written as empty files."""

    def save(drawing: style.Drawing, folder: Path) -> tuple[Path, Path]:
        png, svg = folder / f"{drawing.name}.png", folder / f"{drawing.name}.svg"
        png.touch()
        svg.touch()
        return png, svg

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "save", save)
        yield
