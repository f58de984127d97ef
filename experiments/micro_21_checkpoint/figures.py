"""Draws the training's losses from its logs, and the growth of the stream from growth.json.

    python -m experiments.micro_21_checkpoint.figures

Writes losses.png and growth.png beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, StrMethodFormatter

from precision_lab.report.figures import style

HERE = Path(__file__).parent
GROWTH = HERE.parents[1] / "results/reference/cpu/micro_21_checkpoint/growth.json"
FLOAT16_MAX = 65504.0


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / "logs" / f"{name}.jsonl").read_text().splitlines()]


def losses() -> Figure:
    figure = style.new_figure(3.0, wspace=0.3)
    vae, transformer = figure.subplots(1, 2)
    panels = (vae, "vae", "l1", "mean absolute error, of 2"), (transformer, "transformer", "loss", "flow-matching loss")
    for axes, name, key, label in panels:
        for part, color in zip((1, 2), style.PALETTE, strict=False):
            log = [row for row in rows(name) if row["slice"] == part]
            axes.semilogy([row["step"] for row in log], [row[key] for row in log], color=color, label=f"slice {part}")
        axes.set(title=name, xlabel="step", ylabel=label)
        for side in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            side(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))
        axes.legend()
    return figure


def curves() -> Figure:
    figure = style.new_figure(3.2)
    axes = figure.subplots()
    steps = json.loads(GROWTH.read_text())["steps"]
    shown = [("image", row) for row in (steps[0], steps[len(steps) // 2], steps[-1])] + [("text", steps[0])]
    for (kind, row), color in zip(shown, style.PALETTE, strict=False):
        label = f"{kind}, sigma {row['sigma']:.2f}" if kind == "image" else "text, at every step"
        amax = row[kind]["amax"]
        axes.semilogy(range(-1, len(amax) - 1), amax, color=color, label=label)
    axes.axhline(FLOAT16_MAX, color=style.MUTED, linestyle="--", linewidth=0.8)
    axes.annotate("float16 max 65504", (0, FLOAT16_MAX), textcoords="offset points", xytext=(0, 4), color=style.MUTED)
    axes.set(xlabel="block (-1: before the first)", ylabel="amax of the residual stream", ylim=(1, 3e5))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.legend()
    return figure


def main() -> None:
    with style.theme():
        for name, draw in (("losses", losses), ("growth", curves)):
            draw().savefig(HERE / f"{name}.png", dpi=style.DPI, metadata={"Software": None})


if __name__ == "__main__":
    main()
