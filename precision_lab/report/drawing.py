"""The figures of a run's page, drawn in this process and, where that is sooner, in another one beside it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from precision_lab.record.run import Run
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Absent, Drawing
from precision_lab.report.rendering import Figure, embedded, numbered
from precision_lab.report.view import View

Draw = Callable[[View], Drawing | Absent | None]

LARGE = 50_000
"""Rows of activations from which on the figures take longer than another process takes to start, about two seconds."""


def figures(
    view: View, draws: Sequence[Draw], folder: Path, beside: ProcessPoolExecutor | None = None
) -> list[Figure | None]:
    """Draws each figure, writes its files into `folder`, and numbers those that are there, in order.

    None stands for a figure that does not belong on this page. beside: the other process, which reads the files of the
    run's folder; the same files give the same bytes in both.
    """
    if beside is None:
        return numbered(_drawn(view, draw, folder) for draw in draws)
    # the other process begins at the end; what it has not begun when this one arrives there, is drawn here
    there = {at: beside.submit(_drawn_there, view.run.path, draws[at], folder) for at in reversed(range(len(draws)))}
    return numbered(_either(view, draw, folder, there[at]) for at, draw in enumerate(draws))


@contextmanager
def process_beside(run: Run) -> Iterator[ProcessPoolExecutor | None]:
    """A process that already reads the tables of a large run; None for a small one, or on one core.

    It ends with this process, also where that is killed, and without a traceback of its own.
    """
    if len(run.tables["activations"]) < LARGE or (os.cpu_count() or 1) < 2:
        yield None
        return
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin)
    try:
        pool.submit(_read, run.path)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process that owns the page
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(130)


def _either(view: View, draw: Draw, folder: Path, there: Future[Figure | None]) -> Figure | None:
    return _drawn(view, draw, folder) if there.cancel() else there.result()


def _drawn(view: View, draw: Draw, folder: Path) -> Figure | None:
    with style.theme():
        drawing = draw(view)
        return None if drawing is None else embedded(drawing, folder)


@lru_cache(maxsize=1)
def _view(path: Path) -> View:
    return View.open(path)


def _read(path: Path) -> None:
    _ = _view(path).activations, _view(path).drift


def _drawn_there(path: Path, draw: Draw, folder: Path) -> Figure | None:
    return _drawn(_view(path), draw, folder)
