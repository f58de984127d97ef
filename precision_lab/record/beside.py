"""A second process for work on the files of a large run, and work that two processes share."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from precision_lab.device import blas, startup

if TYPE_CHECKING:
    from precision_lab.record.run import Run

Item = TypeVar("Item")
Result = TypeVar("Result")

LARGE = 2_000_000
"""Bytes of recorded activations from which on a report takes longer than another process takes to start, about two
seconds."""


@contextmanager
def process_beside(folder: Path, module: str = "") -> Iterator[ProcessPoolExecutor | None]:
    """A process that reads the tables of a large run, then imports `module`; None for a small run, or on one core.

    It starts at once, so that its imports do not follow those of this process. It ends with this process, also where
    that is killed, and without a traceback of its own.
    """
    if _size(folder) < LARGE or (os.cpu_count() or 1) < 2:
        yield None
        return
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin)
    try:
        pool.submit(_prepare, folder, module)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def shared(
    items: Sequence[Item],
    here: Callable[[Item], Result],
    there: Callable[[Path, Item], Result],
    folder: Path,
    beside: ProcessPoolExecutor | None,
) -> Iterator[Result]:
    """The result of each item, in order, from `here(item)`, or from `there(folder, item)` in the other process."""
    if beside is None:
        return map(here, items)
    # the other process begins at the end; what it has not begun when this one arrives there, is done here
    futures = {at: beside.submit(there, folder, items[at]) for at in reversed(range(len(items)))}
    return (_either(here, item, futures[at]) for at, item in enumerate(items))


@lru_cache(maxsize=1)
def run_there(folder: Path) -> Run:
    """The run of a folder as the other process keeps it between two pieces of work."""
    from precision_lab.record.run import Run

    return Run.open(folder)


def _either(here: Callable[[Item], Result], item: Item, there: Future[Result]) -> Result:
    return here(item) if there.cancel() else there.result()


def _size(folder: Path) -> int:
    files = (folder / "activations.parquet", *(folder / "activations").glob("part-*.parquet"))
    return sum(path.stat().st_size for path in files if path.is_file())


def _begin() -> None:
    startup.prepare()
    blas.one_thread_for_numpy()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process that owns the page
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(130)


def _prepare(folder: Path, module: str) -> None:
    tables = run_there(folder).tables
    for name in ("activations", "drift", "latency"):
        _ = tables[name]
    if module:
        importlib.import_module(module)
