"""Configures glibc to reuse freed memory for the next large array instead of returning it to Linux.

On a CPU, MLX allocates every array with malloc, which maps blocks larger than 32 MiB and unmaps them when they are
freed. Linux then clears each page again at its first touch, which took a third of the time of a full-width transformer
block: with freed memory retained, 8 blocks at 256 x 256 pixels take 12.0 s instead of 16.8 s on two cores of an EPYC.
Smaller models are not affected.
"""

from __future__ import annotations

import ctypes
import os
import sys

_SWITCH = "PRECISION_LAB_MALLOC"

# from malloc.h; the trim threshold is converted to size_t, where -1 is the largest value
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4

_keeps_freed = False


def keep_freed() -> None:
    """Makes malloc in this process retain freed memory; PRECISION_LAB_MALLOC=off leaves malloc unchanged.

    The process holds its peak memory until it exits, and slightly more if freed blocks do not fit new sizes. Does
    nothing without glibc.
    """
    global _keeps_freed
    if not sys.platform.startswith("linux") or os.environ.get(_SWITCH) == "off":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    _keeps_freed = mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))


def description() -> str | None:
    """The malloc setting for the run record, or None for the default."""
    return "glibc's malloc, keeps what is freed" if _keeps else None
