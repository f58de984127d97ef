"""The figure of the atlas: two models side by side, one row for each question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from experiments.atlas.survey import SENSITIVITY, Survey
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Drawing

FLOAT16_MAX = 65504.0
BLUE, ORANGE, GREEN = style.PALETTE[:3]
PARTS = {"attention": BLUE, "feed-forward": ORANGE}
NAMES = {
    "reordered": "other order of sums",
    "modulation8": "modulation at 8 bits",
    "modulation4": "modulation at 4 bits",
}
ROWS = (1.0, 1.15, 0.8, 1.0, 0.5)
_TIGHT = {"handlelength": 1.6, "labelspacing": 0.3, "columnspacing": 1.0}


def draw(surveys: Sequence[Survey]) -> Drawing:
    """Raises ValueError unless there are two surveys."""
    if len(surveys) != 2:
        raise ValueError(f"{len(surveys)} surveys, expected 2")
    figure = style.new_figure(12.6, h_pad=0.06, w_pad=0.06)
    grid = figure.subplots(len(ROWS), 2, height_ratios=ROWS)
    for row, (panel, title) in zip(grid, PANELS.items(), strict=True):
        panel(row, surveys)
        row[0].set_title(title)
    for axes, survey in zip(grid[0], surveys, strict=True):
        place = {"xytext": (0, 24), "textcoords": "offset points", "xycoords": "axes fraction"}
        name = f"{survey.name}, {survey.depth} blocks"
        axes.annotate(name, (0.5, 1), ha="center", fontsize=12.5, fontweight="bold", **place)
    return Drawing("side_by_side", "The atlas of two models", figure, "")


def _growth(row: Sequence[Axes], surveys: Sequence[Survey]) -> None:
    lines = [
        *(line for s in surveys for line in s.growth.values()),
        *(line for s in surveys for line in s.other.values()),
    ]
    low, high = style.log_range([*lines, [FLOAT16_MAX]])
    for axes, survey in zip(row, surveys, strict=True):
        colours = _sequence(len(survey.growth))
        for (step, line), colour in zip(survey.growth.items(), colours, strict=True):
            axes.plot(line.index, line, color=colour, label=f"σ = {survey.levels[step]:.2f}")
        for name, line in survey.other.items():
            axes.plot(line.index, line, color=GREEN, linestyle=(0, (4, 1.5)), label=name)
        axes.axhline(FLOAT16_MAX, color=style.INK, linewidth=0.9, linestyle=(0, (1, 1)))
        axes.annotate("65504", (0, FLOAT16_MAX), (2, 2), textcoords="offset points", fontsize=8.5, color=style.INK)
        style.log_axis(axes, low, high)
        _blocks(axes, survey)
        axes.legend(fontsize=8.5, loc="best", frameon=True, framealpha=1, edgecolor="none", **_TIGHT)
    row[1].tick_params(labelleft=False)


def _headroom(row: Sequence[Axes], surveys: Sequence[Survey]) -> None:
    kinds = list(dict.fromkeys(kind for survey in surveys for kind in survey.headroom["kind"]))
    ends = np.concatenate([survey.headroom[["least", "most"]].to_numpy().ravel() for survey in surveys])
    for axes, survey in zip(row, surveys, strict=True):
        for entry in survey.headroom.itertuples():
            at = kinds.index(entry.kind)
            colour = ORANGE if entry.least < 0 else BLUE
            axes.plot(
                [entry.least, entry.most], [at, at], color=colour, linewidth=3.2, alpha=0.35, solid_capstyle="butt"
            )
            axes.plot(entry.least, at, marker="o", color=colour, markersize=5)
        axes.axvline(0, color=style.INK, linewidth=0.9, linestyle=(0, (1, 1)))
        axes.set_xlim(min(ends.min(), 0) - 1, ends.max() + 1)
        axes.set_yticks(range(len(kinds)), kinds if axes is row[0] else [""] * len(kinds))
        axes.set_ylim(len(kinds) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("bits below 65504; dot: the site nearest to it")


def _shares(row: Sequence[Axes], surveys: Sequence[Survey]) -> None:
    for axes, survey in zip(row, surveys, strict=True):
        adds = survey.shares[survey.shares["part"] != "entry"]
        entry = survey.shares.loc[survey.shares["part"] == "entry", "share"].sum()
        blocks = np.arange(survey.depth)
        total = np.full(survey.depth, entry)
        for part, colour in PARTS.items():
            own = adds[adds["part"] == part].groupby("block")["share"].sum().reindex(blocks, fill_value=0).cumsum()
            axes.plot(blocks, own, color=colour, label=part)
            total = total + own.to_numpy()
        axes.plot(blocks, total, color=style.INK, linewidth=2, label="both, and the entry")
        axes.axhline(entry, color=style.MUTED, linewidth=1, linestyle=(0, (4, 1.5)), label="the entry")
        axes.set_ylim(min(-0.03, *(min(line.get_ydata()) - 0.03 for line in axes.lines)), 1.05)
        axes.grid(axis="y")
        _blocks(axes, survey)
    row[0].legend(fontsize=8.5, loc="upper left", **_TIGHT)
    row[1].tick_params(labelleft=False)


def _errors(row: Sequence[Axes], surveys: Sequence[Survey]) -> None:
    found = [survey.errors[survey.errors["variant"].isin(["baseline", "float16"])] for survey in surveys]
    low, high = style.log_range([own["rel_l2"] for own in found])
    for axes, survey, own in zip(row, surveys, found, strict=True):
        steps = sorted(own["step"].unique())
        for (variant, mode), lines in own.groupby(["variant", "mode"]):
            colour = {"free": BLUE, "teacher": ORANGE}[mode]
            for step, line in lines.groupby("step"):
                alpha = 1 - 0.3 * steps.index(step)
                dashes = "-" if variant == "baseline" else (0, (4, 1.5))
                axes.plot(line["block"], line["rel_l2"], color=colour, alpha=alpha, linestyle=dashes, linewidth=1.3)
        style.log_axis(axes, low / 2, high * 4)
        _blocks(axes, survey)
        levels = [f"{survey.levels[step]:.2f}" for step in steps]
        axes.annotate(
            f"σ = {', '.join(levels)}, dark to light", (0.98, 0.03), xycoords="axes fraction", ha="right", fontsize=8.5
        )
    handles = {
        "accumulated": Line2D([], [], color=BLUE),
        "local": Line2D([], [], color=ORANGE),
        "bfloat16": Line2D([], [], color=style.INK),
        "float16": Line2D([], [], color=style.INK, linestyle=(0, (4, 1.5))),
    }
    row[0].legend(handles.values(), handles.keys(), fontsize=8.5, loc="upper right", ncols=4, **_TIGHT)
    row[1].tick_params(labelleft=False)


def _sensitivity(row: Sequence[Axes], surveys: Sequence[Survey]) -> None:
    every = np.concatenate([survey.ratios[name] for survey in surveys for name in SENSITIVITY])
    low, high = min(every.min(), 1), max(every.max(), 1)
    for axes, survey in zip(row, surveys, strict=True):
        for at, name in enumerate(SENSITIVITY):
            values = survey.ratios[name]
            axes.plot(values, np.full(len(values), at), "o", color=BLUE, alpha=0.45, markersize=5, markeredgewidth=0)
            mean = float(np.exp(np.log(values).mean()))
            axes.plot(mean, at, marker="|", color=style.INK, markersize=13, markeredgewidth=2)
        axes.axvline(1, color=style.INK, linewidth=0.9, linestyle=(0, (1, 1)))
        axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        axes.set_yticks(range(len(SENSITIVITY)), [NAMES[n] for n in SENSITIVITY] if axes is row[0] else [""] * 3)
        axes.set_ylim(len(SENSITIVITY) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("ratio to plain bfloat16; dots: prompts, bar: their mean")


PANELS = {
    _growth: "Largest magnitude of the stream after each block",
    _headroom: "Headroom in float16",
    _shares: "Share of the final stream, summed over blocks",
    _errors: "Relative L2 error of the stream after each block",
    _sensitivity: "Drift of the latents",
}
"""How each row is drawn, and its title."""


def _blocks(axes: Axes, survey: Survey) -> None:
    axes.set_xlim(-0.5, survey.depth - 0.5)
    style.index_axis(axes.xaxis, survey.depth - 1)
    axes.set_xlabel("block")


def _sequence(number: int) -> list[tuple[float, float, float]]:
    """Shades of blue, from dark for the first step to light for the last."""
    base = np.array(to_rgb(BLUE))
    return [tuple(base * (1 - t) * 0.85 + (base * 0.3 + 0.7) * t) for t in np.linspace(0, 1, max(number, 2))[:number]]
