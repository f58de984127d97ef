"""What may be a folder of results. Imports little: a command claims its folder before it loads anything large."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from precision_lab.errors import InputError

_UNFIT = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Categories of characters in no name of a folder: control characters, bytes that are not UTF-8, line breaks."""


def user_path(text: str | os.PathLike[str]) -> Path:
    """The path that a user means, with ~ as the home folder. ~NAME of an unknown user stays, where Path would raise."""
    return Path(os.path.expanduser(text))


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


def given_folder(out: str) -> Path:
    """The folder that a user wants to be written. Raises InputError if it is no name, a file, or below one."""
    if not out:
        raise InputError("out is '', expected a folder")
    path = user_path(out)
    check_name(path)
    with writable(path):
        if path.exists() and not path.is_dir():
            raise InputError(f"out={out} is a file, expected a folder")
        for parent in path.parents:
            if parent.exists():
                if not parent.is_dir():
                    raise InputError(f"out={out} is below {parent}, which is a file, expected a folder")
                break
    return path
