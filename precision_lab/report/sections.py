"""A page of tables and figures: what the pages of `compare` share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from precision_lab.record.files import write_text, writing
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Absent, Drawing
from precision_lab.report.rendering import Figure, embed, render
from precision_lab.report.wording import number, slug

_FEW = 16
"""The most letters of a cell that is a third of a narrow screen wide."""


@dataclass(frozen=True)
class Picture:
    """A picture in a cell, as a data URI; without one, `note` says why."""

    alt: str
    uri: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A table with its heading. rows: cells as text, or pictures. numeric: the columns that hold numbers.

    folded: whether it is closed at first. searched: whether its rows can be sorted and searched.
    """

    title: str
    notes: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    numeric: frozenset[int] = frozenset()
    folded: bool = False
    searched: bool = False

    @property
    def id(self) -> str:
        return slug(self.title)

    @property
    def short(self) -> frozenset[int]:
        """The columns of few letters, which stand side by side on a narrow screen; none where only one could."""
        texts = [column for column in range(1, len(self.columns)) if column not in self.numeric]
        short = [at for at in texts if all(len(row[at]) <= _FEW for row in self.rows if isinstance(row[at], str))]
        return frozenset(short if len(short) + len(self.numeric) > 1 else ())


def write(
    folder: Path,
    title: str,
    facts: Sequence[str],
    answers: Sequence[str],
    sections: Sequence[Section],
    drawings: Sequence[Drawing | Absent],
    name: str = "compare.html",
) -> Path:
    """Writes the page and its figures into `folder`; returns the page's path."""
    figures = folder / "figures"
    with writing(figures):
        figures.mkdir(parents=True, exist_ok=True)
    embedded: list[Figure] = embed(drawings, figures)
    page = folder / name
    write_text(
        page, render("compared.html", title=title, facts=facts, answers=answers, sections=sections, figures=embedded)
    )
    return page


def text(value: Any) -> str:
    """A cell: a number with three digits, a dash for none."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return number(None)
    if isinstance(value, np.generic):
        value = value.item()
    return number(value)


def theme() -> Any:
    """Context manager that sets fonts and lines of the figures of a page."""
    return style.theme()
