"""The one exception for mistakes a user can cause, and the wording of "did you mean"."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterable, Sequence

# control characters, overrides of the direction of writing, and surrogates, which no encoding can print
_CONTROLS = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")

_COMPARED = 200
"""The number of characters of a name that are compared with the valid ones."""

_MOST_NAMED = 12
"""The most names that are one letter from the one that was given."""

# packages whose frames in a traceback are not a user's own
_LIBRARIES = frozenset(
    ("precision_lab", "hydra", "omegaconf", "pydantic", "mlx", "mlx_lm", "numpy", "scipy", "pandas", "ml_dtypes")
)


class InputError(ValueError):
    """Something the user gave cannot be used: a path, a tensor, a site, an override.

    The message is one or two lines: what was given, what was expected, the nearest valid choice.
    The command line prints it to stderr and exits with code 2.
    """


class VariantError(Exception):
    """A variant failed, and without it nothing else can be measured. The message is one or two lines.

    The command line prints it to stderr and exits with code 1.
    """


def visible(text: str) -> str:
    """`text` with the characters that would control a terminal as escapes, such as \\x1b."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def first_line(error: BaseException) -> str:
    """The first line of the message of an error that a library raised, or the error's class if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """A sentence naming the `choices` most like `name`, or the first few where none is alike."""
    choices = sorted(set(choices))
    if close := _alike(name, choices, count):
        return f"Did you mean {', '.join(close)}?"
    if not choices:
        return "None are available."
    more = ", ..." if len(choices) > 2 * count else ""
    return f"Available: {', '.join(choices[: 2 * count])}{more}."


def expected(choices: Collection[str], name: str) -> str:
    """The clause "expected one of" with all `choices`, and a sentence on those most like `name`, if any are."""
    close = _alike(name, sorted(set(choices)))
    return f"expected one of {', '.join(choices)}" + (f". Did you mean {', '.join(close)}?" if close else "")


def _alike(name: str, choices: Sequence[str], count: int = 3) -> list[str]:
    import difflib  # here, as below: --help imports this module and finds no mistake

    name = name[:_COMPARED]
    close = [choice for choice in choices if _is_one_edit(name, choice)][:_MOST_NAMED]
    if len(close) < count:
        alike = difflib.get_close_matches(name, choices, n=count, cutoff=0.5)
        close = [*close, *(choice for choice in alike if choice not in close)][:count]
    return close


def _is_one_edit(one: str, other: str) -> bool:
    """Whether a character more or less, another one, or two neighbours exchanged make one name the other.

    Not where nothing would be left in common: no name, or one other letter.
    """
    if abs(len(one) - len(other)) > 1 or len(one) + len(other) <= 2:
        return False
    start = 0
    while start < min(len(one), len(other)) and one[start] == other[start]:
        start += 1
    rest, wanted = one[start:], other[start:]
    exchanged = rest[1:2] + rest[:1] + rest[2:]
    return wanted in (rest[1:], exchanged) or rest == wanted[1:] or (bool(rest) and rest[1:] == wanted[1:])


def shown(value: object, length: int = 80) -> str:
    """The value as Python writes it, on one line, cut off after `length` characters."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def inline(name: str, length: int = 80) -> str:
    """A name from a file, on one line: what cannot be printed as escapes, cut off after `length` characters."""
    text = name if name.isprintable() else repr(name)[1:-1]
    return text if len(text) <= length else f"{text[: length - 3]}..."


def described(error: BaseException) -> str:
    """An exception in one line, with the file and the line of the code that raised it.

    Frames of this package and of libraries are passed over where code outside them took part: the place is that of a
    user's own technique, probe or model, not of what it called.
    """
    import traceback

    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({_short(error.filename or '-')}:{error.lineno})"
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [(frame, line) for frame, line in frames if _is_a_users(frame.f_globals.get("__name__"))]
    message = first_line(error)
    name = type(error).__name__
    text = name if message == name else f"{name}: {message}"
    if not frames:
        return text
    frame, line = (own or frames)[-1]
    return f"{text} ({_short(frame.f_code.co_filename)}:{line})"


def _short(path: str) -> str:
    """A path below the working folder without that folder."""
    here = f"{os.getcwd()}{os.sep}"
    return path.removeprefix(here)


def _is_a_users(module: object) -> bool:
    package = str(module).partition(".")[0]
    return package not in _LIBRARIES and package not in sys.stdlib_module_names
