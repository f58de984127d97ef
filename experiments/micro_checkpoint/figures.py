"""Draws the training's curves from its logs: losses, and growth before and after.

    python -m experiments.micro_checkpoint.figures

Reads logs/, writes losses.png and growth.png beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from precision_lab.report.figures import style

HERE = Path(__file__).parent
FLOAT16_MAX = 65504.0


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / "logs" / f"{name}.jsonl").read_text().splitlines()]


def smooth(values: list[float], window: int = 10) -> np.ndarray:
    """Means of `window` neighbours, which reduces the number of points by that factor."""
    return np.convolve(values, np.ones(window) / window, "valid")


def losses() -> Figure:
    figure = style.new_figure(3.0, wspace=0.06)
    vae, text, transformer = figure.subplots(1, 3)
    blue, orange = style.PALETTE[:2]
    log = rows("vae")
    vae.semilogy([r["step"] for r in log], [127.5 * r["l1"] for r in log], color=blue)
    vae.set(title="VAE", xlabel="step", ylabel="mean absolute error, of 255")
    log = rows("text_encoder")
    text.plot([r["step"] for r in log], [r["next_token"] for r in log], color=blue, label="next token")
    text.plot([r["step"] for r in log], [r["attributes"] for r in log], color=orange, label="attributes")
    text.set(title="Text encoder", xlabel="step", ylabel="cross entropy, nats", ylim=(0, 6))
    text.legend()
    log = rows("transformer")
    steps, window = [r["step"] for r in log], 10
    transformer.semilogy(steps[window - 1 :], smooth([r["loss"] for r in log], window), color=blue)
    transformer.set(title="Transformer", xlabel="step", ylabel="flow-matching loss")
    growth = transformer.twinx()
    growth.plot(steps, [r["growth"] for r in log], color=orange)
    growth.set_ylabel("r, growth of the gates a block", color=orange)
    growth.spines["right"].set_visible(True)
    return figure


def curves() -> Figure:
    figure = style.new_figure(3.2)
    axes = figure.subplots()
    logged = [r for r in rows("transformer") if "amax" in r]
    labels = ("before r is annealed", "at the end of training")
    for row, label, colour in zip((logged[0], logged[-1]), labels, style.PALETTE, strict=False):
        axes.semilogy(range(-1, len(row["amax"]) - 1), row["amax"], color=colour, label=f"step {row['step']}, {label}")
    axes.axhline(FLOAT16_MAX, color=style.MUTED, linestyle="--", linewidth=0.8)
    axes.annotate("float16 max 65504", (0, FLOAT16_MAX), textcoords="offset points", xytext=(0, 4), color=style.MUTED)
    axes.set(xlabel="block (-1: after img_in)", ylabel="amax of the image stream")
    axes.legend()
    return figure


def main() -> None:
    with style.theme():
        for name, draw in (("losses", losses), ("growth", curves)):
            draw().savefig(HERE / f"{name}.png", dpi=style.DPI, metadata={"Software": None})


if __name__ == "__main__":
    main()
