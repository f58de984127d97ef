"""The requests to a child process, and its end with its parent. Imports nothing that takes time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from io import FileIO
from queue import SimpleQueue

GRACE = 0.5
"""Seconds that a child has to end by itself after its last request. A child that computes has nothing worth keeping:
the parts of a generation are written when it is complete."""


class Requests:
    """The lines that a descriptor delivers, read by a thread, so that their end is noticed during a computation.

    The operating system closes the pipe when the parent ends, even if it is killed. `GRACE` seconds after that, the
    whole process ends with exit code 130, whatever it is doing. Create one before anything that takes time.
    """

    def __init__(self, descriptor: int):
        # of its own and unbuffered: the interpreter cannot shut down while a thread waits in sys.stdin
        self._stream = FileIO(os.dup(descriptor))
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __iter__(self) -> Iterator[str]:
        """The lines in order; waits for the next, and ends when the parent sends no more."""
        return iter(self._lines.get, None)

    def _read(self) -> None:
        for line in self._stream:
            self._lines.put(line.decode())
        self._lines.put(None)
        time.sleep(GRACE)
        os._exit(130)
