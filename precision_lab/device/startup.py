"""What a process of the command line sets before it imports MLX."""

from __future__ import annotations

import gc

from precision_lab.device import allocator, blas

_COLLECT_EVERY = 50_000
"""Objects between two searches for reference cycles. Recording creates hundreds of thousands of rows, none of which is
part of a cycle, and with CPython's default of 700 the searches took 7 % of the time of `gate`."""


def prepare() -> None:
    """Sets malloc, the BLAS and the garbage collector of this process. Raises InputError for wrong switches."""
    gc.set_threshold(_COLLECT_EVERY)
    allocator.keep_freed()
    blas.preload()
