"""The figures of a run's page, drawn in this process and, where there is one, in another one beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

from precision_lab.record.beside import run_there, shared
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Absent, Drawing
from precision_lab.report.rendering import Figure, embedded
from precision_lab.report.view import View

Draw = Callable[[View], Drawing | Absent | None]


def figures(
    view: View, draws: Sequence[Draw], folder: Path, beside: ProcessPoolExecutor | None = None
) -> Iterator[Figure | None]:
    """Draws each figure when it is asked for, and writes its files into `folder`; in order, without their numbers.

    None stands for a figure that does not belong on this page. beside: the other process, which begins at once; it
    reads the files of the run's folder, and the same files give the same bytes in both.
    """
    return shared(draws, partial(_drawn, view, folder), partial(_drawn_there, folder), view.run.path, beside)


def _drawn(view: View, folder: Path, draw: Draw) -> Figure | None:
    with style.theme():
        drawing = draw(view)
        return None if drawing is None else embedded(drawing, folder)


@lru_cache(maxsize=1)
def _view(path: Path) -> View:
    return View.open(run_there(path))


def _drawn_there(folder: Path, path: Path, draw: Draw) -> Figure | None:
    return _drawn(_view(path), folder, draw)
