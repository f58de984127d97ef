"""The folder for files that can be regenerated at any time."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """This program's cache folder, under $XDG_CACHE_HOME or ~/.cache. It may not exist yet.

    Raises OSError if the user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG base directory specification ignores relative paths
        base = os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(base):
        raise OSError("no home folder and no XDG_CACHE_HOME")
    return Path(base) / "precision_lab"
