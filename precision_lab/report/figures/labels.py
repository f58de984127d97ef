"""Names as labels of figures: short enough for their place, and never two names under the same label."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from functools import lru_cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

_LEAST = 12
"""The fewest characters that a name is shortened to."""


def shorten(name: str, length: int) -> str:
    """`name` without its middle if it is longer than `length`, because names differ at their ends."""
    return _elide(name, (length - 1) // 2, length)


def distinct(names: Sequence[str], length: int) -> dict[str, str]:
    """A label of up to `length` characters (at least 12) for each name, no two the same.

    Names lose their middle; where that makes two equal, another part; where every part does, labels are numbered.
    """
    unique = list(dict.fromkeys(names))
    middle = (length - 1) // 2
    for head in sorted(range(length), key=lambda head: abs(head - middle)):
        found = {name: _elide(name, head, length) for name in unique}
        if len(set(found.values())) == len(unique):
            return found
    room = length - len(str(len(unique))) - 1
    return {name: f"{at} {shorten(name, room)}" for at, name in enumerate(unique, start=1)}


def fold(name: str, length: int) -> str:
    """`name` over lines of up to `length` characters, broken at spaces; within words, after underscores and plus signs,
    only where that gives shorter or fewer lines."""
    pieces = textwrap.wrap(re.sub(r"([_+])(?=.)", r"\1 ", name), length)
    words = textwrap.wrap(name, length, break_long_words=False, break_on_hyphens=False)
    if len(words) <= len(pieces) and all(len(line) <= length for line in words):
        return "\n".join(words)
    return "\n".join(re.sub(r"([_+]) ", r"\1", piece) for piece in pieces)


def folded(names: Sequence[str], length: int, lines: int = 2) -> dict[str, str]:
    """A label for each name, of up to `lines` lines of `length` characters, no two the same."""
    for total in range(length * lines, _LEAST, -1):
        found = {name: fold(label, length) for name, label in distinct(names, total).items()}
        if all(label.count("\n") < lines for label in found.values()):
            return found
    return {name: fold(label, length) for name, label in distinct(names, _LEAST).items()}


def fitted(names: Sequence[str], points: float, size: float, lines: int = 2, bold: bool = False) -> dict[str, str]:
    """As `folded`, with as many characters a line as fit into `points` at a font size."""
    found: dict[str, str] = {}
    for length in range(max(8, int(points / (0.45 * size))), 7, -1):
        found = folded(names, length, lines)
        if all(width(label, size, bold) <= points for label in found.values()):
            break
    return found


@lru_cache(maxsize=4096)
def width(text: str, size: float, bold: bool = False) -> float:
    """The width in points of the longest line of `text` in the font of figures."""
    font = FontProperties(size=size, weight="bold" if bold else "normal")
    shape = TextToPath().get_text_width_height_descent
    return max((float(shape(line, font, False)[0]) for line in text.split("\n") if line), default=0.0)


def _elide(name: str, head: int, length: int) -> str:
    """`name` with `head` characters before an ellipsis if it is longer than `length`."""
    if len(name) <= length:
        return name
    return f"{name[:head]}…{name[len(name) - (length - 1 - head) :]}"
