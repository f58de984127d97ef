from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from precision_lab.report import page, write
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


def _save_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(drawing: style.Drawing, folder: Path) -> tuple[Path, Path]:
        png, svg = folder / f"{drawing.name}.png", folder / f"{drawing.name}.svg"
        png.touch()
        svg.touch()
        return png, svg

    monkeypatch.setattr(style, "save", save)


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but written as empty files: for tests of which figures there are, in a fifth of the time."""
    _save_nothing(monkeypatch)


@pytest.fixture(scope="module")
def unrendered_module() -> Iterator[None]:
    """`unrendered` for fixtures of a module."""
    with pytest.MonkeyPatch.context() as patch:
        _save_nothing(patch)
        yield


@pytest.fixture
def drawing_only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Limits the figures of the pages that the test writes to those of some functions; without any, to none."""

    def limit(*draws: Callable[..., Any]) -> None:
        kept = {part: tuple(draw for draw in known if draw in draws) for part, known in page.FIGURES.items()}
        assert sum(map(len, kept.values())) == len(draws)
        monkeypatch.setattr(page, "FIGURES", kept)

    return limit


@pytest.fixture
def figureless(drawing_only: Callable[..., None]) -> None:
    """Pages have no figures: for tests of the rest of their text."""
    drawing_only()
