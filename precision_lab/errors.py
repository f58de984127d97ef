"""The one exception for mistakes a user can cause, and the wording of "did you mean"."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# control characters, overrides of the direction of writing, and surrogates, which no encoding can print
_CONTROLS = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


class InputError(ValueError):
    """Something the user gave cannot be used: a path, a tensor, a site, an override.

    The message is one or two lines: what was given, what was expected, the nearest valid choice.
    The command line prints it to stderr and exits with code 2.
    """


def visible(text: str) -> str:
    """`text` with the characters that would control a terminal as escapes, such as \\x1b."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


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
