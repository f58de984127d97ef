"""What may be a folder of results. Imports little: a command claims its folder before it loads anything large."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from precision_lab.errors import InputError

_UNFIT = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Categories of characters in no name of a folder: control characters, bytes that are not UTF-8, line breaks."""


@contextmanager
def writable(out: Path) -> Iterator[None]:
    """Context manager that raises InputError for a folder that cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"out={out} cannot be written: {error.strerror or error}") from error


def check_name(out: Path) -> None:
    """Raises InputError for a name that holds control characters or bytes that are not UTF-8."""
    name = str(out)
    if any(unicodedata.category(character) in _UNFIT for character in name):
        raise InputError(f"out={name!r} holds control characters or bytes that are not UTF-8, expected a plain name")
