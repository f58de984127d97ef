"""The table and the figure of the CPU benchmark, generated from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from precision_lab.numerics.intervals import Ratio, paired_ratio
from precision_lab.report.figures import style

COLOURS = {"bare wheel": style.MUTED, "plain": style.PALETTE[5], "fast": style.PALETTE[0], "torch": style.PALETTE[1]}
DTYPES = ("float32", "bfloat16")
SHOWN_MODULES = ("Linear", "Attend", "GELUTanh", "Rotary", "LayerNorm", "RMSNorm", "Modulate", "GatedAdd", "rest")
TARGETS = {"NumPy": 0.8, "bare wheel": 15.0, "torch": 1.5}


def write(record: Mapping[str, Any], folder: Path) -> None:
    """Writes cpu.md, cpu.png and cpu.svg."""
    parts = (_header(record), _targets(record), _forward_table(record), _linear_table(record), _module_table(record))
    (folder / "cpu.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    with style.theme():
        style.save(_figure(record), folder)


def _header(record: Mapping[str, Any]) -> str:
    machine, peer = record["environment"], record["torch"]
    before, after = record["load"]
    return (
        f"# CPU benchmark\n\n{machine['device']}, {machine['cores']} cores; MLX {machine['mlx']}, {machine['blas']}; "
        f"torch {peer['version']} on {peer['threads']} threads; load average {before:.1f} before, {after:.1f} after."
    )


def _targets(record: Mapping[str, Any]) -> str:
    rows = []
    for size, arms in record["linear_gflops"].items():
        ratio = paired_ratio(arms["fast float32"], arms["NumPy float32"])
        bound = TARGETS["NumPy"]
        rows.append((f"linear float32 {size}, GFLOP/s: fast / NumPy", _interval(ratio), f"at least {bound}"))
    seconds = record["forward_seconds"]
    for dtype in DTYPES:
        fast = seconds[f"fast {dtype}"]
        ratio = paired_ratio(fast, seconds[f"torch {dtype}"])
        rows.append((f"forward {dtype}, time: fast / torch", _interval(ratio), f"at most {TARGETS['torch']}"))
        if bare := seconds.get(f"bare wheel {dtype}"):
            ratio = paired_ratio(np.full(len(fast), bare[0]), fast)
            bound = TARGETS["bare wheel"]
            rows.append((f"forward {dtype}, time: bare wheel / fast", _interval(ratio), f"at least {bound:g}"))
    return "## Targets\n\n" + _table(("ratio", "median [95 %]", "target"), rows)


def _forward_table(record: Mapping[str, Any]) -> str:
    seconds, errors = record["forward_seconds"], record["relative_l2"]
    rows = []
    for name in sorted(seconds, key=lambda name: (DTYPES.index(name.split()[-1]), -np.median(seconds[name]))):
        taken = seconds[name]
        middle = f"{np.median(taken):.2f} [{min(taken):.2f}, {max(taken):.2f}]"
        ratio = "1" if name.startswith("torch") else _over_torch(seconds, name)
        rows.append((name, middle, str(len(taken)), ratio, f"{errors[name]:.1e}"))
    head = ("forward", "seconds, median [least, most]", "rounds", "times torch [95 %]", "rel. L2 from torch float32")
    return "## Forward pass\n\n" + _table(head, rows)


def _over_torch(seconds: Mapping[str, Sequence[float]], name: str) -> str:
    peer = seconds[f"torch {name.split()[-1]}"]
    taken = seconds[name]
    return _interval(paired_ratio(taken, peer)) if len(taken) == len(peer) else f"{taken[0] / np.median(peer):.1f}"


def _linear_table(record: Mapping[str, Any]) -> str:
    sizes = record["linear_gflops"]
    arms = next(iter(sizes.values()))
    rows = [(name, *(f"{np.median(sizes[size][name]):.0f}" for size in sizes)) for name in arms]
    blank = [""] * (len(sizes) - 1)
    for dtype, found in record["bare_wheel"].items():
        rows.append((f"bare wheel {dtype}", f"{found['linear']:.1f}", *blank))
        rows += [(f"bare wheel {b}-bit, {dtype}", f"{found[f'quantized_{b}']:.2f}", *blank) for b in (4, 8)]
    return "## Linear, GFLOP/s\n\nRows x inputs x outputs; median.\n\n" + _table(("linear", *sizes), rows)


def _module_table(record: Mapping[str, Any]) -> str:
    arms = record["module_seconds"]
    names = sorted(
        {name for arm in arms.values() for name in arm}, key=lambda n: -max(a.get(n, 0) for a in arms.values())
    )
    rows = [(name, *(f"{1e3 * arm.get(name, 0):.1f}" for arm in arms.values())) for name in names]
    head = ("class of module", *arms)
    return "## Where the time goes, ms a forward\n\nEach leaf module evaluated alone.\n\n" + _table(head, rows)


def _interval(ratio: Ratio) -> str:
    return f"{ratio.estimate:.2f} [{ratio.lo:.2f}, {ratio.hi:.2f}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figure(record: Mapping[str, Any]) -> style.Drawing:
    figure = style.new_figure(6.2, hspace=0.06, wspace=0.05)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.25))
    linears, times = top.subplots(1, 2)
    _draw_linears(linears, record)
    _draw_times(times, record)
    _draw_modules(bottom.subplots(1, 1), record)
    caption = "Linears, the forward pass and its parts on the CPU."
    return style.Drawing("cpu", "The CPU beside its peers", figure, caption)


def _draw_linears(axes: Axes, record: Mapping[str, Any]) -> None:
    sizes = record["linear_gflops"]
    shown = ("NumPy float32", "plain float32", "fast float32", "torch float32", "fast bfloat16", "torch bfloat16")
    values = {name: float(np.median([np.median(arms[name]) for arms in sizes.values()])) for name in shown}
    values["bare wheel float32"] = record["bare_wheel"]["float32"]["linear"]
    values["bare wheel bfloat16"] = record["bare_wheel"]["bfloat16"]["linear"]
    _bars(axes, dict(sorted(values.items(), key=lambda item: item[1])), "{:.0f}")
    axes.set_title("Linear, GFLOP/s (more is better)")


def _draw_times(axes: Axes, record: Mapping[str, Any]) -> None:
    seconds = {name: float(np.median(taken)) for name, taken in record["forward_seconds"].items()}
    _bars(axes, dict(sorted(seconds.items(), key=lambda item: -item[1])), "{:.2f}")
    axes.set_xscale("log")
    low, high = min(seconds.values()) / 3, 3 * max(seconds.values())
    axes.set_xlim(low, high)
    style.log_ticks(axes.xaxis, low, high)
    axes.set_title("Forward pass, seconds (less is better)")


def _bars(axes: Axes, values: Mapping[str, float], label: str) -> None:
    colours = [COLOURS.get(name.rsplit(" ", 1)[0], style.REFERENCE) for name in values]
    bars = axes.barh(list(values), list(values.values()), color=colours, height=0.7)
    axes.bar_label(bars, [label.format(value) for value in values.values()], padding=3, fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.14)
    axes.grid(axis="x")


def _draw_modules(axes: Axes, record: Mapping[str, Any]) -> None:
    arms = dict(reversed(record["module_seconds"].items()))
    left = np.zeros(len(arms))
    for at, name in enumerate(SHOWN_MODULES):
        own = np.array([arm.get(name, 0.0) for arm in arms.values()])
        colour = style.PALETTE[at % len(style.PALETTE)] if name != "rest" else style.FAINT
        hatch = "////" if at >= len(style.PALETTE) and name != "rest" else None
        axes.barh(list(arms), own, left=left, color=colour, label=name, height=0.65, hatch=hatch, edgecolor="white")
        left += own
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("seconds a forward pass, each module evaluated alone")
    axes.set_title("Where the time goes", pad=24)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(SHOWN_MODULES), handlelength=1, columnspacing=1)
