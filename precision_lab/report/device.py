"""The device's page: effective bits of every operation, growth of error in sums, attention by its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.lines import Line2D

from precision_lab.report import style
from precision_lab.report.style import Drawing

TITLE = "What MLX computes in on this device"
COLOURS = {"float32": style.PALETTE[0], "bfloat16": style.PALETTE[1], "float16": style.PALETTE[2]}
MARKERS = {"float32": "s", "bfloat16": "o", "float16": "D"}
WIDTHS = {"bfloat16": 8, "float16, TF32": 11, "float32": 24}
# the same limits as the verdict's, stored with it
VERDICT_COLOURS = {"supported": "#2f7d4f", "refuted": "#b3261e", "inconclusive": style.MUTED}
_ATTENTION = "fast.sdpa"


def draw(record: Mapping[str, Any]) -> Drawing:
    """The figure of a device.json."""
    ops = record["s6"]["ops"]
    figure = style.new_figure(1.3 + 0.178 * len(ops), wspace=0.02, hspace=0.03)
    left, right = figure.subfigures(1, 2, width_ratios=(1.42, 1))
    _bits(left.subplots(), ops)
    upper, *lower = right.subplot_mosaic("AA;BC", height_ratios=(1, 1.05)).values()
    _growth(upper, record["findings"])
    _attention(lower, record["findings"])
    handles = [
        Line2D([], [], color=COLOURS[name], marker=MARKERS[name], linestyle="none", markersize=5) for name in COLOURS
    ]
    figure.legend(handles, list(COLOURS), loc="outside upper left", ncols=3, borderaxespad=0.2, handletextpad=0.1)
    environment = record["environment"]
    caption = (
        f"{environment['device']}, {environment['backend']}, MLX {environment['mlx']}. Left: the narrowest width "
        "measured in each operation (factors, accumulator, or error beyond the final rounding), one mark a storage "
        "dtype; more is better, and the word is the verdict on S6. Upper right: relative error of a sum. Lower right: "
        "effective bits of fused attention by head dimension and queries x keys."
    )
    return Drawing("device", TITLE, figure, caption)


def _bits(axes: Axes, ops: list[Mapping[str, Any]]) -> None:
    for row, op in enumerate(ops):
        bits = op["bits"]
        if bits:
            axes.hlines(row, min(bits.values()), max(bits.values()), color="#c9c9c9", linewidth=1, zorder=1)
        for name, value in bits.items():
            axes.scatter(value, row, color=COLOURS[name], marker=MARKERS[name], s=17, zorder=3, linewidths=0)
        axes.text(
            1.015,
            row,
            op["verdict"],
            color=VERDICT_COLOURS[op["verdict"]],
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=7.5,
        )
    for width in WIDTHS.values():
        axes.axvline(width, color=style.MUTED, linewidth=0.7, linestyle=(0, (3, 2)), zorder=0)
    axes.set_xticks([0, *WIDTHS.values(), 17], ["0", "8\nbf16", "11\nfp16, TF32", "24\nfp32", "17"])
    axes.set_yticks(range(len(ops)), [op["op"] for op in ops], fontsize=7.8)
    axes.set(ylim=(len(ops) - 0.4, -0.6), xlim=(-0.6, 25))
    axes.grid(axis="y", linewidth=0.4)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("effective significant bits (more is better)")
    axes.set_title("Narrowest width in each operation", loc="left")
    axes.text(1.015, -1, "S6", transform=axes.get_yaxis_transform(), va="center", fontsize=8, fontweight="bold")


def _growth(axes: Axes, findings: list[Mapping[str, Any]]) -> None:
    values = []
    for name, colour in COLOURS.items():
        rows = [f for f in findings if f["property"] == "error_growth" and f["dtype"] == name and f["value"]]
        if rows:
            n, error = zip(*((f["parameters"]["length"], f["value"]) for f in rows), strict=True)
            axes.plot(n, error, color=colour, marker=MARKERS[name], markersize=3.5, linewidth=1.3)
            values.append(error)
    axes.set_xscale("log", base=2)
    style.log_axis(axes, *style.log_range(values))
    axes.set_title("Error of a sum of n numbers")
    axes.set_xlabel("n")
    axes.set_ylabel("relative error, rms")


def _attention(panels: list[Axes], findings: list[Mapping[str, Any]]) -> None:
    rows = [f for f in findings if f["op"] == _ATTENTION and f["property"] == "interior_bits"]
    heads = sorted({f["parameters"]["head_dim"] for f in rows})
    lengths = list(dict.fromkeys((f["parameters"]["queries"], f["parameters"]["keys"]) for f in rows))
    colours = ListedColormap(["#f3c6ba", "#ececec", "#cfe3d6"])
    for axes, name in zip(panels, ("bfloat16", "float16"), strict=True):
        bits = np.full((len(heads), len(lengths)), np.nan)
        for f in rows:
            if f["dtype"] == name and f["value"] is not None:
                place = heads.index(f["parameters"]["head_dim"])
                bits[place, lengths.index((f["parameters"]["queries"], f["parameters"]["keys"]))] = f["value"]
        axes.imshow(bits, cmap=colours, norm=BoundaryNorm([0, 15, 17, 25], 3), aspect="auto")
        for (i, j), value in np.ndenumerate(bits):
            axes.text(j, i, "-" if np.isnan(value) else f"{value:.0f}", ha="center", va="center", fontsize=9)
        axes.set_xticks(range(len(lengths)), [f"{q}x{k}" for q, k in lengths], fontsize=8)
        axes.set_yticks(range(len(heads)), [str(head) for head in heads])
        axes.set_title(f"Attention, {name}", fontsize=9, color=COLOURS[name])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("queries x keys")
    panels[0].set_ylabel("head dimension")
    panels[1].tick_params(labelleft=False)
