"""The second figure of `device`: errors beside the bounds of two arithmetics, and faults reported in public."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from precision_lab.report.figures import style
from precision_lab.report.figures.device import COLOURS, MARKERS, OFFSETS, SHADE, VERDICTS
from precision_lab.report.figures.style import Drawing

TITLE = "Errors beside their bounds, and faults reported in public"
ERRORS = (
    "The largest error of each product and attention over the bound of float32 arithmetic, one mark a storage dtype, "
    "log scale; less is better. The shaded range meets that bound. A short line is the bound of arithmetic in the "
    "storage dtype (11 bits for float32). The word says which arithmetic explains the least precise result."
)
FAULTS = "Whether this device has faults of MLX that were reported in public."

_LEAST = 1e-3  # smaller errors, also 0, are drawn here
_SHARED = "storage dtype"

Finding = Mapping[str, Any]


def draw(record: Mapping[str, Any]) -> Drawing | None:
    """Draws the figure of a device.json; None for a record with neither bounds nor checks, as of schema 1."""
    worst, checks = _worst(record["findings"]), record.get("checks", [])
    if not worst and not checks:
        return None
    height = 1.5 + 0.19 * max(len(worst), len(checks))
    figure = style.new_figure(height, wspace=0.03, rect=(0.018, 0, 0.977, 1))
    grid = figure.subplot_mosaic(
        "EF" if worst and checks else "E" if worst else "F", width_ratios=(1.9, 1) if worst and checks else None
    )
    environment = record["environment"]
    caption = [f"{environment['device']}, {environment['backend']}, MLX {environment['mlx']}."]
    if worst:
        _draw_errors(grid["E"], worst)
        caption.append(f"Left: {ERRORS[:1].lower()}{ERRORS[1:]}" if checks else ERRORS)
        handles: list[Artist] = [
            Line2D([], [], color=COLOURS[name], marker=MARKERS[name], linestyle="none", markersize=5)
            for name in COLOURS
        ]
        handles += [Patch(color=SHADE), Line2D([], [], color=style.MUTED, marker="|", linestyle="none", markersize=7)]
        labels = [*COLOURS, "meets float32's bound", "bound in the storage dtype"]
        figure.legend(handles, labels, loc="outside upper left", ncols=5, borderaxespad=0.2, handletextpad=0.4)
    if checks:
        _draw_faults(grid["F"], checks)
        caption.append(f"Right: {FAULTS[:1].lower()}{FAULTS[1:]}" if worst else FAULTS)
    return Drawing("device_errors", TITLE, figure, " ".join(caption))


def _worst(findings: Iterable[Finding]) -> dict[str, dict[str, Finding]]:
    """The finding with the largest error over its bound, by label and storage dtype."""
    worst: dict[str, dict[str, Finding]] = {}
    for finding in findings:
        if finding.get("bounds") and finding["value"] is not None:
            row = worst.setdefault(_label(finding), {})
            name = finding["dtype"]
            if name not in row or _share(finding) > _share(row[name]):
                row[name] = finding
    return worst


def _label(finding: Finding) -> str:
    """The operation with the size that people meet; other sizes share a row."""
    sizes, op = finding["parameters"], str(finding["op"]).replace("quantized_matmul", "quantized")
    if "head_dim" in sizes:
        return f"{op}, heads of {sizes['head_dim']}"
    return op.replace("many rows", f"{sizes['rows']:,} rows") if "many rows" in op else op


def _share(finding: Finding) -> float:
    return float(finding["value"]) / float(finding["bound"])


def _draw_errors(axes: Axes, worst: Mapping[str, Mapping[str, Finding]]) -> None:
    words = axes.get_yaxis_transform()
    highest = 1.0
    for row, by_dtype in enumerate(worst.values()):
        for name, finding in by_dtype.items():
            at, other = row + OFFSETS[name], max(finding["bounds"].values()) / finding["bound"]
            share = max(_share(finding), _LEAST)
            highest = max(highest, share, other)
            axes.plot([other, other], [at - 0.14, at + 0.14], color=COLOURS[name], linewidth=1.6, zorder=2)
            axes.scatter(share, at, color=COLOURS[name], marker=MARKERS[name], s=14, zorder=3, lw=0)
        word, colour = _met(by_dtype.values())
        axes.text(1.02, row, word, color=style.ink(colour), transform=words, va="center", fontsize=7.8)
    axes.axvspan(_LEAST / 2, 1, color=SHADE, linewidth=0, zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(_LEAST / 2, 2 * highest)
    style.log_ticks(axes.xaxis, _LEAST / 2, 2 * highest)
    axes.set_yticks(range(len(worst)), list(worst), fontsize=8)
    axes.set(ylim=(len(worst) - 0.4, -0.6), xlabel="error / bound of float32 arithmetic (less is better)")
    axes.grid(axis="y", linewidth=0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("Largest error and its bounds")


def _met(findings: Iterable[Finding]) -> tuple[str, str]:
    """A word and its colour: the arithmetic that explains the errors of all storage dtypes."""
    met = [finding["meets"] for finding in findings]
    if None in met:
        return "wrong", VERDICTS["refuted"]
    wide = all(name == "float32" for name in met)
    return ("float32", VERDICTS["supported"]) if wide else (_SHARED, VERDICTS["refuted"])


def _draw_faults(axes: Axes, checks: Sequence[Mapping[str, Any]]) -> None:
    axes.set_axis_off()
    axes.set(ylim=(len(checks) - 0.4, -0.6), xlim=(0, 1))
    for row, check in enumerate(checks):
        verdict = str(check["verdict"])
        colour = {"absent": VERDICTS["supported"], "present": VERDICTS["refuted"]}.get(verdict, style.MUTED)
        axes.text(0, row, str(check["name"]).replace("_", " "), va="center", fontsize=7.8)
        axes.text(1, row, verdict, color=style.ink(colour), va="center", ha="right", fontsize=7.8)
    axes.set_title("Public faults of MLX")
