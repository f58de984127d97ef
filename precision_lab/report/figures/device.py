"""The figure of the device page: effective bits of every operation, error growth in sums, and attention by size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator

from precision_lab.report.figures import style
from precision_lab.report.figures.style import Drawing

TITLE = "What MLX computes in on this device"
COLOURS = {"float32": style.PALETTE[0], "bfloat16": style.PALETTE[1], "float16": style.PALETTE[2]}
MARKERS = {"float32": "s", "bfloat16": "o", "float16": "D"}
OFFSETS = {"float32": -0.2, "bfloat16": 0.0, "float16": 0.2}  # so that markers do not overlap
WIDTHS = {"bf16": (8, "right"), "fp16, TF32": (11, "left"), "fp32": (24, "center")}
FLOAT32_LEAST, NARROWER_MOST = 17.0, 15.0  # the limits in device/behaviour/verdict.py
SHADE = "#e3efe7"
VERDICTS = {"supported": "#2f7d4f", "refuted": "#b3261e", "inconclusive": style.MUTED}
ALONE = (
    "The narrowest width measured in each operation (factors, accumulator, or error beyond the final rounding), one "
    "mark a storage dtype; more is better."
)
LEFT = f"Left: {ALONE[:1].lower()}{ALONE[1:]}"
SHADED = "The shaded range counts as float32; the word is the verdict on S6."
SUMS = "{place}: relative error of a sum, log scales."
SIZES = "effective bits of mx.fast's attention by head dimension and queries × keys"
SHADES = {"red: narrower than float32": "#f6d5cc", "grey: neither": "#ececec", "green: float32": "#d8e9de"}
"""The colours of the cells of attention, by what they mean, from few bits to many."""

_ATTENTION = "fast.sdpa"


def draw(record: Mapping[str, Any]) -> Drawing:
    """Draws the figure of a device.json, which `cli.device` writes."""
    ops, findings = record["s6"]["ops"], record["findings"]
    sums = [f for f in findings if f["property"] == "error_growth" and f["value"]]
    sizes = [f for f in findings if f["op"] == _ATTENTION and f["property"] == "interior_bits"]
    figure = style.new_figure(1.55 + 0.17 * max(len(ops), 8), wspace=0.02, hspace=0.03, rect=(0.018, 0, 0.977, 1))
    right = [row for row, rows in (("LAA", sums), ("LBC", sizes)) if rows]
    grid = figure.subplot_mosaic(
        ";".join(right) or "L",
        width_ratios=(2.15, 0.8, 0.8) if right else None,
        height_ratios=(1.25, 1) if len(right) > 1 else None,
    )
    _bits(grid["L"], ops)
    caption = [_about(record["environment"]), LEFT if right else ALONE, SHADED]
    if sums:
        _growth(grid["A"], sums)
        caption.append(SUMS.format(place="Upper right" if sizes else "Right"))
    if sizes:
        colours = _attention([grid["B"], grid["C"]], sizes)
        where = "Lower right" if sums else "Right"
        caption.append(f"{where}: {SIZES}; {', '.join(colours)}." if colours else f"{where}: {SIZES}.")
    handles: list[Artist] = [
        Line2D([], [], color=COLOURS[name], marker=MARKERS[name], linestyle="none", markersize=5) for name in COLOURS
    ]
    handles.append(Patch(color=SHADE))
    labels = [*COLOURS, "counts as float32"]
    figure.legend(handles, labels, loc="outside upper left", ncols=4, borderaxespad=0.2, handletextpad=0.4)
    return Drawing("device", TITLE, figure, " ".join(caption))


def _about(environment: Mapping[str, Any]) -> str:
    return f"{environment['device']}, {environment['backend']}, MLX {environment['mlx']}."


def _bits(axes: Axes, ops: list[Mapping[str, Any]]) -> None:
    labels = axes.get_yaxis_transform()
    axes.axvspan(FLOAT32_LEAST, 24.6, color=SHADE, linewidth=0, zorder=0)
    for row, op in enumerate(ops):
        bits = op["bits"]
        if bits:
            axes.hlines(row, min(bits.values()), max(bits.values()), color="#c9c9c9", linewidth=1, zorder=1)
        for name, value in bits.items():
            axes.scatter(value, row + OFFSETS[name], color=COLOURS[name], marker=MARKERS[name], s=14, zorder=3, lw=0)
        verdict = op["verdict"]
        axes.text(1.02, row, verdict, color=style.ink(VERDICTS[verdict]), transform=labels, va="center", fontsize=7.8)
    for name, (width, side) in WIDTHS.items():
        axes.axvline(width, color=style.MUTED, linewidth=0.7, linestyle=(0, (3, 2)), zorder=0.5)
        axes.text(width, -1.0, name, color=style.MUTED, fontsize=7.8, ha=side, va="center")
    axes.text(1.02, -1.0, "S6", transform=labels, va="center", fontsize=8.5, fontweight="bold")
    axes.set_xticks([0, 4, 8, 11, 16, 20, 24])
    axes.set_yticks(range(len(ops)), [op["op"].replace("quantized_matmul", "quantized") for op in ops], fontsize=8)
    axes.set(ylim=(len(ops) - 0.4, -0.6), xlim=(-0.6, 24.6), xlabel="effective significant bits (more is better)")
    axes.grid(axis="y", linewidth=0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("Narrowest width in each operation", pad=20)


def _growth(axes: Axes, findings: list[Mapping[str, Any]]) -> None:
    values = []
    for name, colour in COLOURS.items():
        rows = [f for f in findings if f["dtype"] == name]
        if rows:
            n, error = zip(*((f["parameters"]["length"], f["value"]) for f in rows), strict=True)
            axes.plot(n, error, color=colour, marker=MARKERS[name], markersize=3.5, linewidth=1.3)
            values.append(error)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([4.0**k for k in range(3, 11)]))
    style.log_axis(axes, *style.log_range(values))
    axes.set_title("Error of a sum of n numbers")
    axes.set_xlabel("n")
    axes.set_ylabel("relative error, rms")


def _attention(panels: list[Axes], rows: list[Mapping[str, Any]]) -> list[str]:
    """Draws the widths by size; returns what the colours that occur mean."""
    heads = sorted({f["parameters"]["head_dim"] for f in rows})
    lengths = list(dict.fromkeys((f["parameters"]["queries"], f["parameters"]["keys"]) for f in rows))
    norm, found = BoundaryNorm([0, NARROWER_MOST, FLOAT32_LEAST, 25], len(SHADES)), set()
    for axes, name in zip(panels, ("bfloat16", "float16"), strict=True):
        bits = np.full((len(heads), len(lengths)), np.nan)
        for f in rows:
            if f["dtype"] == name and f["value"] is not None:
                place = heads.index(f["parameters"]["head_dim"])
                bits[place, lengths.index((f["parameters"]["queries"], f["parameters"]["keys"]))] = f["value"]
        axes.set_axisbelow(False)
        axes.imshow(bits, cmap=ListedColormap(list(SHADES.values())), norm=norm, aspect="auto")
        found |= {int(norm(value)) for value in bits[np.isfinite(bits)]}
        for (i, j), value in np.ndenumerate(bits):
            axes.text(j, i, "-" if np.isnan(value) else f"{value:.0f}", ha="center", va="center", fontsize=9)
        axes.set_xticks(range(len(lengths)), [f"{q}×{k}" for q, k in lengths], fontsize=7.8, rotation=25)
        axes.set_yticks(range(len(heads)), [str(head) for head in heads])
        axes.set_title(f"Attention\n{name}", fontsize=9, color=style.ink(COLOURS[name]))
        axes.tick_params(length=0)
        axes.set_xticks(np.arange(len(lengths) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(heads) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="minor", length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("queries × keys")
    panels[0].set_ylabel("head dimension")
    panels[1].tick_params(labelleft=False)
    return [words for at, words in enumerate(SHADES) if at in found]
