from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from precision_lab.report import write
from precision_lab.report.figures import style
from tests.report.fabricated_run import fabricate

SMALL = {"blocks": 6, "steps": 3, "prompts": ("a bicycle",), "seeds": (0, 5), "side": 32}


@pytest.fixture
def small_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes run folders as `fabricate` does, small unless told otherwise."""

    def make(name: str = "run", **changes: Any) -> Path:
        return fabricate(tmp_path / name, **(SMALL | changes))

    return make


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small complete run with its report, not to be changed."""
    run = fabricate(tmp_path_factory.mktemp("report") / "run", **(SMALL | {"prompts": ("雪山 <b>& mist</b>",)}))
    write(run)
    return run


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but written as empty files: for tests of the page's text, in a fifth of the time."""

    def save(drawing: style.Drawing, folder: Path) -> tuple[Path, Path]:
        png, svg = folder / f"{drawing.name}.png", folder / f"{drawing.name}.svg"
        png.touch()
        svg.touch()
        return png, svg

    monkeypatch.setattr(style, "save", save)
