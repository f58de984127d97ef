"""Labels of ticks on logarithmic axes."""

from __future__ import annotations

import re
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, LogFormatterMathtext

RAISED = str.maketrans("-−0123456789", "⁻⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_POWER = re.compile(r"\^\{([^{}]*)\}")
_MARKUP = re.compile(r"\$|\\mathdefault|[{}]")


class PowersAsText(Formatter):
    """The labels of a formatter that writes powers in mathtext, such as 10⁻³, as plain text.

    Mathtext takes many times as long to lay out, and is not read where `text.parse_math` is off.
    """

    def __init__(self, formatter: LogFormatterMathtext):
        self._formatter = formatter

    def __call__(self, x: float, pos: int | None = None) -> str:
        return plain(self._formatter(x, pos))

    def set_locs(self, locs: list[float]) -> None:
        self._formatter.set_locs(locs)

    def set_axis(self, axis: Any) -> None:
        super().set_axis(axis)
        self._formatter.set_axis(axis)


def plain(label: str) -> str:
    """A label in mathtext with its exponents as raised digits: `$\\mathdefault{10^{-3}}$` is 10⁻³."""
    return _MARKUP.sub("", _POWER.sub(lambda found: found[1].translate(RAISED), label)).replace("\\times", "×")


def write_powers_as_text(figure: Figure) -> None:
    """Replaces the formatters of a figure's axes that write mathtext, those that matplotlib chose too."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        major, minor = axis.get_major_formatter(), axis.get_minor_formatter()
        if isinstance(major, LogFormatterMathtext):
            axis.set_major_formatter(PowersAsText(major))
        if isinstance(minor, LogFormatterMathtext):
            axis.set_minor_formatter(PowersAsText(minor))
