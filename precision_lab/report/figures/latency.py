"""Cost in time: intervals of the paired ratio to the baseline, and all raw samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from precision_lab.record.summary import Latency
from precision_lab.report.figures import labels, style
from precision_lab.report.figures.style import Absent, Drawing, Look
from precision_lab.report.view import View

TITLE = "Latency"
UNITS = {"step": "one step", "generation": "one generation", "component": "one component"}


def draw(view: View) -> Drawing | Absent:
    if view.latency is None:
        return Absent(TITLE, "This run measured no latency.")
    names = [name for name in view.variants if (view.latency["variant"] == name).any()]
    kinds = [kind for kind in UNITS if (view.latency["what"] == kind).any()]
    baseline = view.baseline
    margin = view.manifest.latency_margin
    ratios = {name: view.entry(name).latency for name in names}
    styles = style.looks(view.by_colour, view.reference)
    figure = style.new_figure(1.1 + 0.42 * len(names))
    forest, *strips = figure.subplots(
        1, 1 + len(kinds), sharey=True, width_ratios=[1.15] + [1 / len(kinds)] * len(kinds)
    )
    _draw_forest(forest, names, ratios, styles, view.reference, baseline, margin)
    for axes, kind in zip(strips, kinds, strict=True):
        _draw_samples(axes, view.latency[view.latency["what"] == kind], names, styles)
        axes.set_title(f"Samples of {UNITS[kind]}")
    forest.set_yticks(range(len(names)), list(labels.folded(names, 26).values()))
    for tick, name in zip(forest.get_yticklabels(), names, strict=True):
        tick.set_color(styles[name].ink)
    forest.set_ylim(len(names) - 0.45, -0.55)
    return Drawing("latency", TITLE, figure, _caption(ratios, baseline, margin, view.reference))


def _caption(ratios: Mapping[str, Latency | None], baseline: str, margin: float, reference: str) -> str:
    left, right = _focus(ratios, reference, margin)
    beyond = any(entry and not left <= entry.ratio <= right for entry in ratios.values())
    arrow = "; an arrow marks a ratio beyond the axis" if beyond else ""
    interval = ", with its simultaneous 95\u00a0% interval" if _intervals(ratios, baseline) else ""
    text = (
        f"Left: ratio of the time to that of {baseline} in the same round (1 = as fast, lower is better), median over "
        f"rounds{interval}{arrow}. "
        "Right: every sample in milliseconds (lower is better), in the order taken from top to bottom in a variant; "
        "the vertical tick is the median."
    )
    text += f" Grey: the margin of ±{100 * margin:g}\u00a0% inside which a difference does not matter."
    smallest = smallest_slowdown(ratios, baseline, margin)
    if smallest is not None:
        text += f" The smallest slowdown that all these intervals could have resolved is a ratio of {smallest:.3f}."
    return text


def smallest_slowdown(ratios: Mapping[str, Latency | None], baseline: str, margin: float) -> float | None:
    """The smallest ratio at which every variant would have been judged slower: 1 + margin + widest half-width.

    "Slower" requires the lower bound to exceed 1 + margin, so the ratio must exceed it by half the interval.
    """
    half_widths = [(high - low) / 2 for low, high in _intervals(ratios, baseline)]
    return 1 + margin + max(half_widths) if half_widths else None


def _intervals(ratios: Mapping[str, Latency | None], baseline: str) -> list[tuple[float, float]]:
    """The intervals of all variants but the baseline; those of one round have none."""
    return [entry.ci95 for name, entry in ratios.items() if name != baseline and entry and entry.ci95]


def _draw_forest(
    axes: Axes,
    names: list[str],
    ratios: Mapping[str, Latency | None],
    styles: Mapping[str, Look],
    reference: str,
    baseline: str,
    margin: float,
) -> None:
    axes.axvspan(1 - margin, 1 + margin, color="#ededed", linewidth=0, zorder=0)
    axes.axvline(1, color=style.MUTED, linewidth=0.8, zorder=1)
    left, right = _focus(ratios, reference, margin)
    axes.set_xlim(left, right)
    for row, name in enumerate(names):
        entry = ratios[name]
        ratio, interval = (entry.ratio, entry.ci95) if entry else (None, None)
        colour = styles[name].colour
        if ratio is not None and left <= ratio <= right:
            axes.plot(ratio, row, "o", color=colour, markersize=5, zorder=3)
        elif ratio is not None:
            axes.plot(right if ratio > right else left, row, ">" if ratio > right else "<", color=colour, clip_on=False)
        if ratio is not None and interval:
            axes.hlines(row, *interval, color=colour, linewidth=2, zorder=2)
        words: dict[str, Any] = {"fontsize": 9, "va": "center", "color": style.INK}
        axes.annotate(_words(entry, name == baseline), (1.03, row), xycoords=axes.get_yaxis_transform(), **words)
    axes.set_xlabel("ratio to baseline (lower is better)")
    axes.set_title("Ratio, 95 % interval" if _intervals(ratios, baseline) else "Ratio")
    axes.ticklabel_format(axis="x", useOffset=False)
    _bare_rows(axes)


def _focus(ratios: Mapping[str, Latency | None], reference: str, margin: float) -> tuple[float, float]:
    """Limits of the ratio axis. They cover all variants and the margin, but not the often far slower reference."""
    values = [1 - margin, 1 + margin]
    for name, entry in ratios.items():
        if name != reference and entry is not None:
            values += [entry.ratio, *(entry.ci95 or ())]
    pad = max(0.08 * (max(values) - min(values)), 0.005)
    return min(values) - pad, max(values) + pad


def _words(entry: Latency | None, is_baseline: bool) -> str:
    if is_baseline:
        return "baseline"
    if entry is None:
        return "no ratio"
    bounds = f" [{entry.ci95[0]:.3f}, {entry.ci95[1]:.3f}]" if entry.ci95 else ""
    return f"{entry.ratio:.3f}{bounds}\n{entry.verdict}".rstrip()


def _draw_samples(axes: Axes, samples: pd.DataFrame, names: list[str], styles: Mapping[str, Look]) -> None:
    for row, name in enumerate(names):
        own = samples[samples["variant"] == name].sort_values(["round", "order"])
        milliseconds = 1e3 * own["seconds"].to_numpy()
        if not len(milliseconds):
            continue
        height = row + np.linspace(-0.28, 0.28, len(own))
        axes.scatter(milliseconds, height, s=9, color=styles[name].colour, alpha=0.7, linewidths=0)
        axes.vlines(np.median(milliseconds), row - 0.34, row + 0.34, color=styles[name].colour, linewidth=1.6)
    axes.set_xlabel("time in ms (lower is better)")
    axes.margins(x=0.06)
    axes.ticklabel_format(axis="x", useOffset=False)
    _bare_rows(axes)


def _bare_rows(axes: Axes) -> None:
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
