"""Checks of single values that several specifications share."""

from __future__ import annotations

import re
from collections.abc import Sequence

from precision_lab.errors import InputError, expected, shown

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
_LONGEST = 200  # bytes of UTF-8: names of files hold it, and may have 255
NAMED = "letters, digits, '_', '.', '+' and '-', at most 200 bytes"


def one_of(what: str, value: str, choices: Sequence[str]) -> str:
    """Returns `value` if it is one of `choices`. Otherwise raises InputError with the nearest choice."""
    if value not in choices:
        raise InputError(f"{what} is {shown(value)}, {expected(choices, str(value))}")
    return value


def is_name(name: str) -> bool:
    """Whether a text can name variants, cases and files."""
    return _NAME.fullmatch(name) is not None and len(name.encode()) <= _LONGEST


def check_prompt(what: str, prompt: object) -> None:
    """Raises InputError for a prompt that is no text."""
    if not isinstance(prompt, str):
        raise InputError(f"{what} holds {shown(prompt)}, expected text")


def check_seed(what: str, seed: object) -> None:
    """Raises InputError for what is no seed of 63 bits."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise InputError(f"{what} holds {shown(seed)}, expected integers from 0 to 2^63 - 1")
