"""Live progress with the remaining time; plain lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from precision_lab.errors import visible

_SECONDS_BETWEEN_LINES = 10.0


class Bar:
    """A progress bar on a terminal."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._task = progress.add_task("starting", total=None)

    def start(self, total: float) -> None:
        self._progress.update(self._task, total=total)

    def advance(self, amount: float, label: str) -> None:
        self._progress.update(self._task, advance=amount, description=visible(label))

    def note(self, text: str) -> None:
        self._progress.console.print(text)


class Lines:
    """Progress as one line every ten seconds, for logs."""

    def __init__(self, console: Console):
        self._console = console
        self._total = self._done = 0.0
        self._started = self._printed = time.monotonic()

    def start(self, total: float) -> None:
        self._total = total
        self._started = self._printed = time.monotonic()

    def advance(self, amount: float, label: str) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._printed >= _SECONDS_BETWEEN_LINES and self._done:
            self._printed = now
            left = (now - self._started) * (self._total / self._done - 1)
            self.note(f"{self._done / self._total:4.0%}  {label}  about {left:.0f} s left")

    def note(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


@contextmanager
def showing(console: Console) -> Iterator[Bar | Lines]:
    """Context manager that yields a progress reporter."""
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(progress)
