"""The one exception for mistakes a user can cause, and the wording of "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used: a path, a tensor, a site, an override.

    The message is one or two lines: what was given, what was expected, the nearest valid choice.
    The command line prints it to stderr and exits with code 2.
    """


def first_line(error: Exception) -> str:
    """The first line of the message of an error that a library raised, or the error's class if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """A sentence naming the `choices` most like `name`, or the first few where none is alike."""
    choices = sorted(set(choices))
    close = difflib.get_close_matches(name, choices, n=count, cutoff=0.5)
    if close:
        return f"Did you mean {', '.join(close)}?"
    if not choices:
        return "None are available."
    more = ", ..." if len(choices) > 2 * count else ""
    return f"Available: {', '.join(choices[: 2 * count])}{more}."
