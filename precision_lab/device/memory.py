"""The size of the memory that tensors are kept in."""

from __future__ import annotations

import os


def physical() -> int:
    """Physical memory of this machine in bytes; on a Mac the GPU shares it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def of_the_device() -> int:
    """Memory of the default device in bytes: a GPU's own if MLX knows it, else that of this machine."""
    import mlx.core as mx

    info = dict(mx.device_info())
    return next((int(info[key]) for key in ("memory_size", "total_memory") if key in info), physical())
