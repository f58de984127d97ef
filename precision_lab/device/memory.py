"""The size of this machine's memory."""

from __future__ import annotations

import os


def physical() -> int:
    """Physical memory in bytes; on a Mac the GPU shares it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
