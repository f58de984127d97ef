"""Setting glibc's malloc to keep freed memory for the next large array instead of returning it to Linux.

On a CPU, MLX allocates every array with malloc, which maps arrays larger than 32 MiB and unmaps them when they are
freed, so Linux clears each page again on first touch. This took a third of the time of a full-width transformer block:
8 blocks at 256 x 256 pixels take 16.8 s without this setting and 12.0 s with it (two cores of an EPYC). Smaller models
are not affected.
"""

from __future__ import annotations

import ctypes
import os
import sys

from precision_lab.errors import InputError

_SWITCH = "PRECISION_LAB_MALLOC"

# from malloc.h; the trim threshold is converted to size_t, so -1 is the largest value
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4

_keeps_freed = False


def keep_freed() -> None:
    """Sets malloc to keep freed memory in this process, unless PRECISION_LAB_MALLOC=off. Does nothing without glibc.

    Raises InputError for another value of PRECISION_LAB_MALLOC.

    The process then holds its peak memory until it ends, and somewhat more where blocks of different sizes do not fit
    into each other's holes.
    """
    global _keeps_freed
    choice = os.environ.get(_SWITCH, "")
    if choice not in ("", "off"):
        raise InputError(f"{_SWITCH} is {choice!r}, expected off, or nothing")
    if not sys.platform.startswith("linux") or choice == "off":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    _keeps_freed = mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))


def description() -> str | None:
    """The allocator setting to record with a result; None if `keep_freed` has not changed it."""
    return "glibc's malloc, keeps what is freed" if _keeps_freed else None
