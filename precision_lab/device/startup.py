"""What a process of a run sets before it imports MLX."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from threading import Thread

from precision_lab.device import allocator, blas

_COLLECT_EVERY = 50_000
"""Objects between two searches for reference cycles. Recording creates hundreds of thousands of rows, none of which is
part of a cycle, and with CPython's default of 700 the searches took 7 % of the time of `gate`."""


def prepare() -> None:
    """Sets malloc, the BLAS and the garbage collector of this process. Raises InputError for wrong switches."""
    gc.set_threshold(_COLLECT_EVERY)
    atexit.unregister(gc.freeze)  # a process may be prepared again
    atexit.register(gc.freeze)  # else it ends with a search among all objects, a quarter of a second
    allocator.keep_freed()
    blas.preload()


def begin(lifeline: Connection, environment: Mapping[str, str]) -> None:
    """Prepares a worker, which ends once the other end of `lifeline` is closed, also because its owner was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process that owns the run
    sys.stdout.flush()
    os.dup2(2, 1)  # what a technique prints is no table
    os.environ.update(environment)
    Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    prepare()


def _end_with(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(130)
