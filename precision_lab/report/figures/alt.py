"""A figure in words, for readers who do not see it: its panels, what they measure, and the entries of its legend."""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from precision_lab.report.figures.style import Drawing

_MOST = 12


def describe(drawing: Drawing) -> str:
    """The alternative text of a figure. It never repeats the title, and is never empty."""
    figure = drawing.figure
    panels = [axes for axes in figure.axes if axes.axison]
    pictures = [axes for axes in panels if axes.images and not len(axes.get_xticks())]
    number = sum(len(axes.images) for axes in pictures)
    what = f"Grid of {_counted(number, 'picture')}" if pictures else f"Plot with {_counted(len(panels), 'panel')}"
    titles = _joined(axes.get_title(loc) for axes in panels for loc in ("left", "center"))
    if pictures:
        titles = _joined(text.get_text() for axes in pictures for text in axes.texts if text.get_fontweight() == "bold")
    parts = [f"{what}: {titles}" if titles else what]
    if not pictures:
        parts += [
            f"{side}: {joined}"
            for side, joined in (
                ("Horizontal", _joined(axes.get_xlabel() for axes in panels)),
                ("Vertical", _joined(axes.get_ylabel() for axes in panels)),
            )
            if joined
        ]
    entries = _joined(text for legend in _legends(figure, panels) for text in legend)
    if entries:
        parts.append(f"Legend: {entries}")
    return ". ".join(parts) + ". The caption says how to read it."


def _legends(figure: Figure, panels: Iterable[Axes]) -> list[list[str]]:
    found = [*figure.legends, *(axes.get_legend() for axes in panels)]
    return [[text.get_text() for text in legend.get_texts()] for legend in found if legend is not None]


def _joined(texts: Iterable[str]) -> str:
    """The distinct texts, each in one line; of many the first."""
    distinct = list(dict.fromkeys(" ".join(text.split()) for text in texts if text.strip()))
    more = f"; and {len(distinct) - _MOST} more" if len(distinct) > _MOST else ""
    return "; ".join(distinct[:_MOST]) + more


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
