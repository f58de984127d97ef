"""Records without what names their user: personal paths, user and host names, removed value by value."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

# a path from the root, not the end of a URL, of a relative path or of a fraction
_ABSOLUTE = re.compile(r"""(?<![\w.~/:*)\]}-])/(?:[^/\s'",;:()\[\]{}<>|]+/)*[^/\s'",;:()\[\]{}<>|]+/?""")

FREE = frozenset({"environment", "command", "checkpoint", "workers", "errors", "notes", "model", "out", "engine"})
"""Entries that hold what a machine or a user said. Names are removed there alone: a user may be called "max"."""


@dataclass(frozen=True)
class Person:
    """What to remove. home: the folder; names: of the user and the host."""

    home: str
    names: Mapping[str, str]

    @classmethod
    def here(cls) -> Person:
        """The user and host of this process."""
        host = socket.gethostname()
        names = {host: "HOST", host.partition(".")[0]: "HOST"}
        with suppress(OSError, KeyError):  # a user id without a name
            names[getpass.getuser()] = "USER"
        return cls(os.path.expanduser("~"), {name: label for name, label in names.items() if name})

    def scrubbed(self, value: Any, is_free: bool = False) -> Any:
        """A copy of a value of JSON. Keys and numbers stay; a text loses absolute paths, in FREE entries also names."""
        if isinstance(value, Mapping):
            return {key: self.scrubbed(entry, is_free or key in FREE) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.scrubbed(entry, is_free) for entry in value]
        return self.text(value, is_free) if isinstance(value, str) else value

    def text(self, text: str, is_free: bool = True) -> str:
        """A text in which each absolute path is its last part, and with `is_free` each name its label."""
        if len(self.home) > 1:  # first: a folder may have a space in its name
            text = re.sub(re.escape(self.home.rstrip("/")) + r"(?![\w.-])", "~", text)
        text = _ABSOLUTE.sub(lambda found: PurePosixPath(found[0]).name, text)
        for name in sorted(self.names, key=len, reverse=True) if is_free else ():
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", self.names[name], text)
        return text
