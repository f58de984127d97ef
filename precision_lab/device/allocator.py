"""Freed memory that glibc keeps for the next large array, instead of handing it back to Linux.

MLX allocates every array of a CPU anew. malloc maps arrays larger than 32 MiB and unmaps them when they are freed, and
Linux clears each page again at its first touch. That took a third of the time of a transformer block of full width
(12.0 s for 8 blocks instead of 16.8 at 256 x 256 pixels, two cores of an EPYC); smaller models are not affected.
"""

from __future__ import annotations

import ctypes
import os
import sys

_SWITCH = "PRECISION_LAB_MALLOC"

# of malloc.h; the trim threshold becomes a size_t, of which -1 is the largest
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4

_keeps = False


def keep_freed() -> None:
    """Makes malloc of this process keep freed memory; PRECISION_LAB_MALLOC=off changes nothing.

    The process holds its peak until it ends, and some more where blocks of several sizes do not fit into each other's
    holes. Nothing happens where there is no glibc.
    """
    global _keeps
    if not sys.platform.startswith("linux") or os.environ.get(_SWITCH) == "off":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    _keeps = mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))


def description() -> str | None:
    """How malloc was set, for the record."""
    return "glibc's malloc, keeps what is freed" if _keeps else None
