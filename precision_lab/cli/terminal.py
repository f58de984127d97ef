"""The terminal: text is printed as it is written, and tables fit the width.

Names, prompts, claims and errors come from users and files. Nothing in them is markup, an emoji code or a control
sequence of the terminal; a style is given by a `rich.text.Text`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table
from rich.text import Text

from precision_lab.errors import visible

Cell = str | Text

_WIDTH_OF_LOGS = 140
_GAP = 2
_LEAST_KEY, _LEAST_TEXT = 20, 26
"""The columns that fold are at least this wide, or as wide as what is in them."""

_SPACES = re.compile(r"(?<=\s)(?=\S)")
_PUNCTUATION = re.compile(r"(?<=[_+./,:-])|(?=[(\[])")


class Terminal(Console):
    """A console on which strings are literal text."""

    def __init__(self, **settings: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(visible(text), **settings)


def open_console(stderr: bool = False) -> Console:
    """A console on standard output or error, wide enough for tables if it is not a terminal."""
    console = Terminal(stderr=stderr)
    return console if console.is_terminal else Terminal(stderr=stderr, width=_WIDTH_OF_LOGS)


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    title: str = "",
    folding: Collection[str] = (),
    keys: int = 1,
) -> None:
    """Prints a table that fits the width of the console. Nothing is cut.

    The first `keys` columns and those in `folding` may take several lines. Columns that do not fit beside each other
    continue in further blocks below, each with the first `keys` columns again.
    """
    if title:
        console.print(Text(visible(title), style="table.title"))
    texts = [[Text(visible(cell)) if isinstance(cell, str) else cell for cell in row] for row in rows]
    for number, block in enumerate(_blocks(columns, texts, folding, keys, console.width)):
        if number:
            console.print()
        table = Table(box=None, pad_edge=False)
        for at, width in block.items():
            table.add_column(Text(_folded(visible(columns[at]), width)), no_wrap=True)
        for row in texts:
            table.add_row(*(Text(_folded(row[at].plain, width), style=row[at].style) for at, width in block.items()))
        console.print(table)


def _blocks(
    columns: Sequence[str], rows: Sequence[Sequence[Text]], folding: Collection[str], keys: int, available: int
) -> list[dict[int, int]]:
    """The width of each column, by its number, for each block of a table."""
    cells = [max([0, *(_length(row[at].plain) for row in rows)]) for at in range(len(columns))]
    whole = [max(cells[at], cell_len(title)) for at, title in enumerate(columns)]
    if sum(whole) + _GAP * (len(whole) - 1) <= available:
        return [dict(enumerate(whole))]
    least: list[int] = []
    for at, title in enumerate(columns):
        word = max(map(cell_len, title.split()), default=0)
        limit = _LEAST_KEY if at < keys else _LEAST_TEXT if title in folding else cells[at]
        beside = sum(width + _GAP for width in least[:keys])
        least.append(min(max(word, min(cells[at], limit)), max(available - beside, 1)))
    leading = list(range(keys))
    blocks = [leading]
    for at in range(keys, len(columns)):
        if len(blocks[-1]) > keys and sum(least[i] + _GAP for i in blocks[-1]) + least[at] > available:
            blocks.append(leading)
        blocks[-1] = [*blocks[-1], at]
    return [_widened({at: least[at] for at in block}, whole, available) for block in blocks]


def _length(cell: str) -> int:
    return max(map(cell_len, cell.split("\n")))


def _widened(widths: dict[int, int], whole: Sequence[int], available: int) -> dict[int, int]:
    """Gives the columns the space that is left, the first column first, up to their whole width."""
    left = available - sum(widths.values()) - _GAP * (len(widths) - 1)
    for at in widths:
        more = min(max(left, 0), whole[at] - widths[at])
        widths[at] += more
        left -= more
    return widths


def _folded(text: str, width: int) -> str:
    """`text` in lines of up to `width` cells: broken after spaces, inside a longer word at punctuation, or anywhere."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in _SPACES.split(paragraph):
            for piece in [word] if cell_len(word.rstrip()) <= width else _PUNCTUATION.split(word):
                if line and cell_len((line + piece).rstrip()) > width:
                    lines.append(line.rstrip())
                    line = ""
                line += piece
                if cell_len(line.rstrip()) > width:
                    *full, line = chop_cells(line, width)
                    lines += full
        lines.append(line.rstrip())
    return "\n".join(lines)
