"""Devices beside each other: the narrowest width measured in each operation, a panel for each dtype."""

from __future__ import annotations

import math

import numpy as np

from precision_lab.analysis.devices import Devices
from precision_lab.report.figures import labels, style
from precision_lab.report.figures.style import Absent, Drawing

TITLE = "Effective bits of each operation, by device"
MOST_OPERATIONS = 30
_DTYPES = ("float32", "bfloat16", "float16")
_MARKERS = ("o", "D", "s", "^", "v", "P", "X")


def draw(found: Devices) -> Drawing | Absent:
    """Operations whose width differs by a bit or more between devices, those that differ most first."""
    spread: dict[str, float] = {}
    for (op, _), values in found.bits.items():
        known = [value for value in values if math.isfinite(value)]
        if len(known) > 1:
            spread[op] = max(spread.get(op, 0.0), max(known) - min(known))
    differing = sorted((op for op, size in spread.items() if size >= 1), key=lambda op: -spread[op])
    if not differing:
        return Absent(TITLE, "No operation's narrowest width differs by a bit or more.")
    shown = differing[:MOST_OPERATIONS]
    names = list(found.records)
    looks = style.looks(names, "")
    figure = style.new_figure(1.3 + 0.2 * max(len(shown), 4), wspace=0.02)
    panels = figure.subplots(1, len(_DTYPES), sharey=True)
    offsets = np.linspace(-0.22, 0.22, len(names)) if len(names) > 1 else [0.0]
    for axes, dtype in zip(panels, _DTYPES, strict=True):
        for row, op in enumerate(shown):
            for at, value in enumerate(found.bits.get((op, dtype), ())):
                if math.isfinite(value):
                    look, marker = looks[names[at]], _MARKERS[at % len(_MARKERS)]
                    axes.scatter(value, row + offsets[at], color=look.colour, marker=marker, s=16, lw=0, zorder=3)
        axes.set(xlim=(-0.6, 24.6), ylim=(len(shown) - 0.4, -0.6))
        axes.set_xticks([0, 8, 11, 16, 24])
        axes.set_title(dtype)
        axes.set_xlabel("bits (more is better)")
        axes.grid(axis="y", linewidth=0.4)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    panels[0].set_yticks(
        range(len(shown)), [labels.shorten(op.replace("quantized_matmul", "quantized"), 40) for op in shown], fontsize=8
    )
    handles = [
        panels[0].scatter([], [], color=looks[name].colour, marker=_MARKERS[at % len(_MARKERS)], s=20, lw=0)
        for at, name in enumerate(names)
    ]
    short = [labels.shorten(name, 40) for name in names]
    figure.legend(handles, short, loc="outside upper left", ncols=min(len(names), 3), borderaxespad=0.2)
    more = f" The {len(shown)} of {len(differing)} that differ most are drawn." if len(differing) > len(shown) else ""
    caption = (
        "The narrowest width measured in each operation: of its factors, its accumulator, or its error beyond the "
        f"final rounding. Operations that differ by a bit or more between devices.{more} bfloat16 has 8 significant "
        "bits, float16 and TF32 have 11, and float32 has 24."
    )
    return Drawing("bits", TITLE, figure, caption)
