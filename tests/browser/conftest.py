"""Pages of a run in a real browser: each test fails for whatever the page logs as a warning or asks the network for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from precision_lab.report import write
from precision_lab.report.figures import style
from tests.browser.chromium import Page, started
from tests.browser.programs import missing
from tests.report.conftest import SMALL
from tests.report.fabricated_run import fabricate


@pytest.fixture(scope="session")
def browser() -> Iterator[Page]:
    """One browser for all tests of a worker. Without one, tests fail in CI and are skipped elsewhere."""
    if lacks := missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(lacks)
    with started() as page:
        yield page


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    """The browser for one test, to open pages with `page.open(path)`; afterwards nothing may have been logged or
    requested. A test that expects a fault takes it with `page.faults()`."""
    browser.faults()
    yield browser
    assert browser.faults() == []


@contextmanager
def plain_figures() -> Iterator[None]:
    """Figures are single grey pixels: drawing takes longer than all tests of a page."""

    def save(drawing: style.Drawing, folder: Path) -> tuple[Path, Path]:
        png, svg = folder / f"{drawing.name}.png", folder / f"{drawing.name}.svg"
        Image.new("L", (2, 1)).save(png)
        svg.write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 1"/>', encoding="utf-8")
        return png, svg

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "save", save)
        yield


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small fabricated run, whose folder it lies in; not to be changed."""
    run = fabricate(tmp_path_factory.mktemp("browser") / "run", **SMALL)
    with plain_figures():
        return write(run)
