"""The folder for files that can be generated again at any time."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """This program's folder in the user's cache, under $XDG_CACHE_HOME or ~/.cache; it may not exist yet.

    Raises OSError if the user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG Base Directory Specification says to ignore relative paths
        base = os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(base):
        raise OSError("no home folder and no XDG_CACHE_HOME")
    return Path(base) / "precision_lab"
