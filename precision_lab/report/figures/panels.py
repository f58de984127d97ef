"""Grids of panels that share one colour scale, and numbers beside a panel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from precision_lab.report.figures import labels, style

_SCALE = 0.032
"""The width of a colour scale, of that of all panels."""


def with_scale(figure: Figure, rows: int, columns: int, **sharing: Any) -> tuple[Any, Axes]:
    """A grid of panels, and the axes of the colour scale on their right.

    The scale has a column of its own: one that belongs to every panel is measured once for each of them.
    """
    outer = figure.add_gridspec(1, 2, width_ratios=[1, _SCALE])
    return outer[0].subgridspec(rows, columns).subplots(squeeze=False, **sharing), figure.add_subplot(outer[1])


def draw_scale(axes: Axes, norm: Normalize, colours: str, label: str, **settings: Any) -> Colorbar:
    """Draws a colour scale without a frame."""
    mappable = ScalarMappable(norm, colours)
    bar = axes.figure.colorbar(mappable, cax=axes, **settings)
    bar.set_label(label)
    bar.outline.set_visible(False)
    return bar


def label_every_panel(grid: Iterable[Axes]) -> None:
    """Writes the numbers of the ticks at each panel of a grid, whether it shares its axes or not."""
    for axes in grid:
        axes.tick_params(labelbottom=True, labelleft=True)


def label_beside(axes: Axes, side: str, texts: Mapping[int, str], title: str) -> None:
    """Writes a second scale at the "right" or the "top" of a panel: `texts` at their ticks, and its title.

    It is text alone: a second axis takes as long to draw as a panel.
    """
    look: dict[str, Any] = {"textcoords": "offset points", "color": style.MUTED, "annotation_clip": False}
    right = side == "right"
    place = axes.get_yaxis_transform() if right else axes.get_xaxis_transform()
    align: dict[str, Any] = {"ha": "left", "va": "center"} if right else {"ha": "center", "va": "bottom"}
    for tick, text in texts.items():
        at, shift = ((1, tick), (4, 0)) if right else ((tick, 1), (0, 4))
        axes.annotate(text, at, xytext=shift, xycoords=place, fontsize=9, **align, **look)
    widest = max(labels.width(text, 9) for text in texts.values())
    middle, apart = ((1.0, 0.5), (8.0 + widest, 0.0)) if right else ((0.5, 1.0), (0.0, 17.0))
    axes.annotate(title, middle, xytext=apart, xycoords="axes fraction", **align, **look)
