"""`python -m experiments.formats.figure DIR TITLE=FILE ...`: drift against bits a weight, a panel for each table.

FILE: of `experiments.formats.table`, or the summary.json of a run, which has no intervals. Writes DIR/pareto.png and
.svg.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from precision_lab.numerics.pareto import nondominated
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Drawing

FAMILIES = {
    "mixes": ("draw_things_8_6", "affine4_boundary16", "affine4_img_mod8"),
    "affine groups": ("affine",),
    "GGUF": ("q8_0", "q6_k", "q5_k", "q4_k", "q4_0"),
    "int8, int4 by row": ("int",),
    "e4m3": ("fp8",),
    "mx and nvfp4": ("mxfp", "nvfp4"),
    "NF4": ("nf4",),
    "SVDQuant": ("svdquant",),
}
"""By title, the beginnings of the names of variants; the first that fits decides."""
COLOURS = dict(zip(FAMILIES, (style.INK, *style.PALETTE), strict=True))
INPUTS, WIDE = "_inputs", "bfloat16"
_DASHES = (0, (4, 2))
_LABEL = 7.5
_SPACING = 1.2
"""Of labels, in heights of their letters."""
_MARK = 4.0
"""Radius of a mark and its margin, in points."""
_FIXED = 1e6
"""Weight of a place that is taken, against that of a label."""


def draw(panels: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """panels: tables by title. Variants that cover fewer weights than others of their table are left out."""
    figure = style.new_figure(5.6 if len(panels) > 1 else 4.2)
    for axes, (title, table) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _panel(axes, table["variants"], 3.2 if len(panels) > 1 else 1.2)
        axes.set_title(title)
        axes.set_xlabel("bits a weight, with scales")
    figure.axes[0].set_ylabel("drift of the latents, rel. L2 (lower is better)")
    figure.canvas.draw()  # the layout decides where labels fit
    for axes in figure.axes:
        _label(axes, len(panels) > 1)
    shown = {_family(name) for table in panels.values() for name in shown_of(table["variants"])}
    marks = [
        Line2D([], [], marker="o", color=colour, linestyle="none", label=family)
        for family, colour in COLOURS.items()
        if family in shown
    ]
    if any(name.endswith(INPUTS) for table in panels.values() for name in table["variants"]):
        look: dict[str, Any] = {"marker": "o", "color": "white", "markeredgecolor": style.INK, "linestyle": "none"}
        marks.append(Line2D([], [], label="its inputs in the format too", **look))
    if any(WIDE in table["variants"] for table in panels.values()):
        marks.append(
            Line2D([], [], color=style.MUTED, linestyle=_DASHES, label="weights as stored, activations in bf16")
        )
    marks.append(Line2D([], [], color=style.MUTED, linewidth=1, label="front of weights alone"))
    figure.legend(handles=marks, loc="outside upper left", ncols=5, fontsize=8.5, columnspacing=1.2)
    return Drawing("pareto", "Drift against bits a weight", figure, "")


def shown_of(variants: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """By name, bits of a weight in the format and drift."""
    largest = max((own["share"] or 0 for own in variants.values()), default=0)
    return {
        name: (own["own_bits"] or own["bits"], own["drift"])
        for name, own in variants.items()
        if _family(name) and own["share"] in (None, largest)
    }


def _family(name: str) -> str | None:
    return next((family for family, starts in FAMILIES.items() if name.startswith(starts)), None)


def _panel(axes: Axes, variants: Mapping[str, Any], room: float) -> None:
    """room: for labels on the right, in bits."""
    points = shown_of(variants)
    ends = [variants[name][end] for name in points for end in ("lo", "hi") if variants[name][end] is not None]
    low, high = style.log_range([[drift for _, drift in points.values()], ends])
    style.log_axis(axes, low, high)
    front = sorted(points[name] for name in points if variants[name]["on_front"])
    axes.step(*zip(*front, strict=True), where="post", color=style.MUTED, linewidth=1, zorder=1)
    for name, (bits, drift) in points.items():
        colour, narrow = COLOURS[_family(name) or ""], name.endswith(INPUTS)
        look: dict[str, Any] = {"color": "white" if narrow else colour, "markeredgecolor": colour, "markersize": 5}
        axes.plot(bits, drift, "o", zorder=5, **look)
        if variants[name]["lo"] is not None:
            axes.plot([bits] * 2, [variants[name]["lo"], variants[name]["hi"]], color=colour, linewidth=1, zorder=2)
        if _has_rivals(name, points):
            background = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
            text: dict[str, Any] = {
                "fontsize": _LABEL,
                "color": colour,
                "gid": "point",
                "bbox": background,
                "zorder": 4,
            }
            axes.annotate(name.removesuffix(INPUTS), (bits, drift), annotation_clip=False, **text)
    if (wide := variants.get(WIDE)) is not None:
        axes.axhline(wide["drift"], color=style.MUTED, linestyle=_DASHES, linewidth=1, zorder=0)
    bits = [bits for bits, _ in points.values()]
    axes.set_xlim(min(bits) - 0.5, max(bits) + room)
    axes.grid(axis="x")


def _has_rivals(name: str, names: Iterable[str]) -> bool:
    """Whether its family has another variant, so that the legend does not name it."""
    return len({other.removesuffix(INPUTS) for other in names if _family(other) == _family(name)}) > 1


def _label(axes: Axes, is_narrow: bool) -> None:
    """Moves the names of points beside their column, so that none covers another or a mark, with a line to the point.

    In narrow panels, columns between the ends, where few points are, have them on the left.
    """
    labels = [text for text in axes.texts if text.get_gid() == "point"]
    columns: dict[int, list[Any]] = {}
    for label in labels:
        columns.setdefault(round(label.xy[0] - 0.25), []).append(label)  # type: ignore[attr-defined]
    height = _LABEL * _SPACING * axes.figure.dpi / 72  # type: ignore[union-attr]
    radius = _MARK * axes.figure.dpi / 72  # type: ignore[union-attr]
    marks = axes.transData.transform([line.get_xydata()[0] for line in axes.lines if line.get_marker() == "o"])  # type: ignore[index]
    to_data = axes.transData.inverted().transform
    for column, members in columns.items():
        members.sort(key=lambda label: label.xy[1])
        at = axes.transData.transform([label.xy for label in members])
        is_left = is_narrow and min(columns) < column < max(columns)
        side = at[:, 0].min() - 0.9 * height if is_left else at[:, 0].max() + (2.4 if is_narrow else 0.9) * height
        near = (np.abs(marks[:, 0] - side) < 2 * radius) & (
            np.abs(marks[:, 1] - at[:, 1].mean()) < np.ptp(at[:, 1]) + height
        )
        if not is_left and near.any():
            side = marks[near, 0].max() + 2 * radius
        width = max(label.get_window_extent().width for label in members)
        start, end = (side - width, side) if is_left else (side, side + width)
        covered = marks[(marks[:, 0] > start - radius) & (marks[:, 0] < end + radius), 1]
        for label, point, place in zip(members, at, _beside(at[:, 1], covered, height), strict=True):
            label.set_position(to_data((side, place)))
            label.set(verticalalignment="center", horizontalalignment="right" if is_left else "left")
            line = to_data([point, (side, place)])
            axes.plot(*line.T, color=label.get_color(), linewidth=0.5, alpha=0.6, zorder=1)


def _beside(wanted: np.ndarray, taken: np.ndarray, least: float) -> list[float]:
    """The places of labels, ascending, at least so far from each other and from the places that are taken.

    Labels keep their order with these. Those that do not fit between two of them come nearer.
    """
    places = np.concatenate([wanted, taken])
    order = np.argsort(places, kind="stable")
    weights = np.where(order < len(wanted), 1.0, _FIXED)
    spread = _spread(places[order], weights, least)
    return [place for place, index in zip(spread, order, strict=True) if index < len(wanted)]


def _spread(wanted: np.ndarray, weights: np.ndarray, least: float) -> list[float]:
    """The places nearest to those wanted, ascending, that are at least so far from each other (least squares)."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight and number of places that touch
    for index, (place, weight) in enumerate(zip(wanted, weights, strict=True)):
        blocks.append((place - index * least, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (mean, heavy, count), (before, own, number) = blocks.pop(), blocks.pop()
            blocks.append(((mean * heavy + before * own) / (heavy + own), heavy + own, count + number))
    means = [mean for mean, _, count in blocks for _ in range(count)]
    return [mean + index * least for index, mean in enumerate(means)]


def of_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a run's summary: bits of all parameters, and the median drift over cases."""
    own = {name: entry for name, entry in summary["variants"].items() if _family(name) and not name.endswith("_twin")}
    points = {name: (entry["bits_per_weight"], entry["latent_rel_l2"]) for name, entry in own.items()}
    front = dict(zip(points, nondominated(np.array(list(points.values()), dtype=float)), strict=True))
    return {
        "variants": {
            name: {
                "share": None,
                "own_bits": None,
                "bits": bits,
                "drift": drift,
                "lo": None,
                "hi": None,
                "on_front": front[name],
            }
            for name, (bits, drift) in points.items()
        }
    }


def main(folder: Path, panels: Mapping[str, Path]) -> None:
    """Draws the figure of some tables."""
    folder.mkdir(parents=True, exist_ok=True)
    read = {title: json.loads(file.read_text()) for title, file in panels.items()}
    tables = {title: of_summary(each) if "schema_version" in each else each for title, each in read.items()}
    with style.theme():
        style.save(draw(tables), folder)


if __name__ == "__main__":
    given = [argument.rpartition("=") for argument in sys.argv[2:]]
    main(Path(sys.argv[1]), {title: Path(file) for title, _, file in given})
