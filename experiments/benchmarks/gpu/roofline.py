"""The roofline (Williams, Waterman and Patterson 2009): each piece's rate against its arithmetic per byte."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from experiments.benchmarks.gpu.composition import Ceilings, PieceResult, ceilings, piece_results
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Drawing

WAY_LOOKS = {
    "eager": ("o", style.REFERENCE),
    "mx.compile": ("s", style.PALETTE[2]),
    "fast kernel": ("D", style.PALETTE[0]),
    "matmul": ("o", style.PALETTE[0]),
    "matmul + bias": ("v", style.PALETTE[4]),
    "addmm": ("^", style.PALETTE[3]),
}
Point = tuple[str, float]
"""A piece's name and the logarithm of its FLOP per byte."""

_LABEL_SPACE = 0.1
"""Distance between neighbouring labels, as a share of a decade."""


def draw(record: Mapping[str, Any]) -> Drawing | None:
    """Draws one panel for each number of image tokens, in ascending order."""
    pieces = {key: piece for key, piece in piece_results(record).items() if piece.flops}
    limits = ceilings(piece_results(record))
    image = {piece.tokens for piece in pieces.values() if piece.group == "attention"}
    if limits is None or not image:
        return None
    figure = style.new_figure(0.6 + 3.9 * len(image))
    shown = [piece for piece in pieces.values() if piece.tokens in image]
    low, high = _limits(shown, limits)
    for axes, tokens in zip(np.atleast_1d(figure.subplots(len(image), 1)), sorted(image), strict=True):
        _panel(axes, [p for p in shown if p.tokens == tokens], limits, low, high)
        axes.set_title(f"{tokens} image tokens")
    ways = [way for way in WAY_LOOKS if any(p.way == way for p in shown)]
    handles = [Line2D([], [], marker=WAY_LOOKS[way][0], color=WAY_LOOKS[way][1], linestyle="") for way in ways]
    figure.legend(handles, ways, loc="outside upper left", ncols=len(ways), borderaxespad=0.2, handletextpad=0.2)
    caption = (
        "Arithmetic a byte that has to be moved, and the rate measured. Lines: copying and the fastest product of the "
        "same run. A vertical stem joins the ways to compute one piece; up to the line is what is left to gain."
    )
    return Drawing("roofline", "Roofline of a block's pieces", figure, caption)


def _limits(shown: list[PieceResult], limits: Ceilings) -> tuple[float, float]:
    """The range of intensities: it covers all pieces, and the ridge where the ceilings meet."""
    intensities = [piece.flops / piece.nbytes for piece in shown] + [limits.flops / limits.nbytes]
    return min(intensities) / 1.8, max(intensities) * 2.2


def _panel(axes: Axes, pieces: list[PieceResult], limits: Ceilings, low: float, high: float) -> None:
    ridge, top = limits.flops / limits.nbytes, limits.flops / 1e12
    corners = np.array([low, ridge, high])
    axes.plot(corners, _roof(corners, limits), color=style.INK, linewidth=1.2)
    bottom = min(*(piece.flops_per_second / 1e12 for piece in pieces), float(_roof(low, limits)))
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    style.log_axis(axes, bottom / 2, top * 3)
    style.log_ticks(axes.xaxis, low, high)
    slope_at = ridge / 8
    for text, at, offset in (
        (f"product {top:.0f} TFLOP/s", (ridge, top), (2, 4)),
        (f"copy {limits.nbytes / 1e9:.0f} GB/s", (slope_at, float(_roof(slope_at, limits))), (4, -12)),
    ):
        axes.annotate(text, at, xytext=offset, textcoords="offset points", fontsize=8.5)
    groups: dict[Point, list[PieceResult]] = {}
    for piece in pieces:
        groups.setdefault((piece.name, round(np.log10(piece.flops / piece.nbytes), 3)), []).append(piece)
    _mark(axes, groups)
    _label(axes, groups, limits)
    axes.set_xlabel("FLOP a byte")
    axes.set_ylabel("TFLOP/s")


def _roof(intensity: npt.ArrayLike, limits: Ceilings) -> npt.NDArray[np.float64]:
    """The attainable TFLOP/s at an intensity in FLOP per byte."""
    return np.minimum(np.asarray(intensity) * limits.nbytes, limits.flops) / 1e12


def _mark(axes: Axes, groups: Mapping[Point, list[PieceResult]]) -> None:
    for (_, intensity), ways in groups.items():
        rates = [piece.flops_per_second / 1e12 for piece in ways]
        axes.vlines(10**intensity, min(rates), max(rates), color=style.FAINT, linewidth=2, zorder=1)
        for piece, rate in zip(ways, rates, strict=True):
            marker, colour = WAY_LOOKS[piece.way]
            axes.plot(10**intensity, rate, marker, color=colour, markersize=5, zorder=3, markeredgewidth=0)


def _label(axes: Axes, groups: Mapping[Point, list[PieceResult]], limits: Ceilings) -> None:
    """Draws vertical names, spaced apart: above the roof if a piece is memory-bound, below the points otherwise.

    A line leads from each to the nearest of its points.
    """
    ridge = np.log10(limits.flops / limits.nbytes)
    memory_bound = sorted((key for key in groups if key[1] < ridge), key=lambda key: key[1])
    compute_bound = sorted((key for key in groups if key[1] >= ridge), key=lambda key: key[1])
    for ordered, above in ((memory_bound, True), (compute_bound, False)):
        if not ordered:
            continue
        nearest = {key: (max if above else min)(p.flops_per_second / 1e12 for p in groups[key]) for key in ordered}
        row = float(_roof(10 ** ordered[-1][1], limits)) * 2 if above else min(nearest.values()) / 2.5
        leader = {"arrowstyle": "-", "color": style.MUTED, "linewidth": 0.5, "shrinkB": 3, "shrinkA": 0}
        for key, place in zip(ordered, spread([key[1] for key in ordered], _LABEL_SPACE), strict=True):
            axes.annotate(
                key[0],
                (10 ** key[1], nearest[key]),
                xytext=(10**place, row),
                rotation=90,
                ha="center",
                va="bottom" if above else "top",
                fontsize=8,
                arrowprops={**leader, "relpos": (0.5, 0.0 if above else 1.0)},
            )


def spread(positions: list[float], gap: float) -> list[float]:
    """Ascending `positions`, moved minimally so that they are at least `gap` apart; clusters keep their means."""
    clusters: list[list[float]] = []
    for position in positions:
        clusters.append([position])
        while len(clusters) > 1 and _first(clusters[-1], gap) - _last(clusters[-2], gap) < gap:
            last = clusters.pop()
            clusters[-1] += last
    return [_first(cluster, gap) + gap * index for cluster in clusters for index in range(len(cluster))]


def _first(cluster: list[float], gap: float) -> float:
    return sum(cluster) / len(cluster) - gap * (len(cluster) - 1) / 2


def _last(cluster: list[float], gap: float) -> float:
    return sum(cluster) / len(cluster) + gap * (len(cluster) - 1) / 2
