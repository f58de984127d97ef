"""Figures of a search: drift against gigabytes, drift over trials, and measured against predicted drift."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from precision_lab.analysis.search.results import Result
from precision_lab.record.search import Findings
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Absent, Drawing

FRONT = "Drift against gigabytes"
OVER_TRIALS = "Drift over trials"
ADDITIVITY = "Measured against predicted drift"

WORDS = {
    "exchange": "found: knapsack and exchange",
    "knapsack": "knapsack by predictions",
    "greedy": "greedy",
    "optuna": "Optuna, TPE",
    "uniform": "one candidate everywhere",
    "included": "included",
    "plain": "as stored",
}
COLOURS = dict(zip(WORDS, (*style.PALETTE[:6], style.INK), strict=True))
MARKS = dict(zip(WORDS, ("*", "o", "v", "s", "D", "P", "X"), strict=True))
_DECADES = 0.4
"""An axis over fewer decades is linear."""


def draw_front(found: Sequence[Result], findings: Findings, held_out: int, result: str) -> Drawing | Absent:
    """Held-out drift of every recipe against its size. held_out: number of cases. result: what drifts."""
    own = [each for each in found if math.isfinite(each.held_out)]
    if not own:
        return Absent(FRONT, "No recipe has a finite drift in the held-out cases.")
    figure = style.new_figure(4.6)
    axes = figure.subplots()
    gigabytes = np.array([each.nbytes / 1e9 for each in own])
    drifts = np.array([each.held_out for each in own])
    floor = _log_axis(axes, "y", [drifts, *([each.lo, each.hi] for each in own)], bool((drifts == 0).any()))
    _log_axis(axes, "x", [gigabytes])
    shown = np.where(drifts > 0, drifts, floor)
    ordered = sorted((at for at, each in enumerate(own) if each.on_front), key=lambda at: gigabytes[at])
    axes.step(gigabytes[ordered], shown[ordered], where="post", color=style.MUTED, linewidth=1, zorder=1)
    for at, each in enumerate(own):
        colour = COLOURS[each.strategy]
        if math.isfinite(each.lo):
            axes.plot([gigabytes[at]] * 2, [each.lo, each.hi], color=colour, linewidth=1, alpha=0.55, zorder=2)
        size = 11 if each.strategy == "exchange" else 6.5
        face = colour if each.on_front else "white"
        look: dict[str, Any] = {"color": face, "markeredgecolor": colour, "markersize": size, "linestyle": "none"}
        axes.plot(gigabytes[at], shown[at], MARKS[each.strategy], zorder=3 + each.on_front, clip_on=False, **look)
    _number(axes, gigabytes, shown, [found.index(each) + 1 for each in own])
    for limit in findings.limits.values():
        axes.axvline(limit / 1e9, color=style.MUTED, linestyle=(0, (1, 2)), linewidth=1, zorder=0)
    axes.grid()
    axes.set_xlabel("linear weights with their scales in GB (1e9 bytes; lower is better)")
    axes.set_ylabel(f"{result}: rel. L2 drift, held out\n(lower is better)")
    per_gigabyte = next((each.bits / (each.nbytes / 1e9) for each in own if each.nbytes), 1.0)
    above = axes.secondary_xaxis("top", functions=(_times(per_gigabyte), _times(1 / per_gigabyte)))
    above.set_xlabel("bits a weight")
    above.xaxis.set_major_locator(MaxNLocator(8))
    above.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    above.xaxis.set_minor_formatter(lambda value, _: "")
    _legend(figure, [each.strategy for each in own])
    caption = _caption(found, own, held_out, bool((drifts == 0).any()), len(findings.limits))
    return Drawing("front", FRONT, figure, caption)


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda values: values * factor


def _caption(found: Sequence[Result], own: Sequence[Result], held_out: int, has_zero: bool, limits: int) -> str:
    cases = "one held-out case" if held_out == 1 else f"{held_out} held-out cases"
    over = f"its drift in {cases}" if held_out == 1 else f"the geometric mean over {cases}"
    interval = " and its 95 % interval over prompts" if any(math.isfinite(each.lo) for each in own) else ""
    text = f"One point for each recipe, with its number in the table: {over}{interval}."
    front = sum(each.on_front for each in own)
    if front:
        joined = ", joined by the line" if front > 1 else ""
        text += f" Filled{joined}: {'recipes' if front > 1 else 'the recipe'} that no other dominates, as measured."
    if limits:
        text += f" Dotted: the budget{'s' * (limits > 1)}."
    if has_zero:
        text += " On the lower edge: no drift at all."
    without = [str(at + 1) for at, each in enumerate(found) if not math.isfinite(each.held_out)]
    return f"{text} Not finite, and not drawn: {', '.join(without)}." if without else text


def draw_trials(trials: pd.DataFrame, findings: Findings) -> Drawing | Absent:
    """The least drift so far over the trials of each strategy, one panel for each budget."""
    means = drift_by_trial(trials)
    budgets = [name for name in findings.limits if (means["budget"] == name).any()]
    means = means[means["strategy"].isin(("exchange", "optuna"))]
    if not budgets or means.empty:
        return Absent(OVER_TRIALS, "No strategy evaluated trials for a budget.")
    figure = style.new_figure(3.4, wspace=0.06)
    panels = figure.subplots(1, len(budgets), squeeze=False)[0]
    single = drift_by_trial(trials)
    for axes, budget in zip(panels, budgets, strict=True):
        of_budget = single[single["budget"] == budget]
        values: list[Any] = []
        for strategy in ("exchange", "optuna"):
            own = of_budget[of_budget["strategy"] == strategy].sort_values("number").drop_duplicates("number")
            if own.empty:
                continue
            number, drift = own["number"].to_numpy(float), own["drift"].to_numpy(float)
            best = np.fmin.accumulate(drift)
            look: dict[str, Any] = {"color": COLOURS[strategy]}
            axes.step(number, best, where="post", linewidth=1.8, **look)
            axes.plot(number, drift, "o", markersize=2.8, alpha=0.6, **look)
            values.append(drift)
        for strategy in ("knapsack", "greedy"):
            drift = of_budget.loc[of_budget["strategy"] == strategy, "drift"].to_numpy(float)
            if len(drift):
                axes.axhline(drift[-1], color=COLOURS[strategy], linestyle=_line(strategy), linewidth=1.2)
                values.append(drift)
        _log_axis(axes, "y", values)
        axes.set_title(budget)
        axes.set_xlabel("trial")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")
    panels[0].set_ylabel("rel. L2 drift in the search's cases\n(lower is better)")
    _legend(figure, [name for name in WORDS if (single["strategy"] == name).any() and name not in _WITHOUT_LINE], True)
    drawn = single[single["budget"].isin(budgets)]["strategy"]
    caption = (
        "Points: the drift of each trial, the geometric mean over the cases of the search. Lines: the least so far."
    )
    needless = [words for name, words in (("knapsack", "the knapsack"), ("greedy", "greedy")) if (drawn == name).any()]
    if needless:
        choices = f"the choice{'s' * (len(needless) > 1)} of {' and of '.join(needless)}"
        caption += f" Dashed: {choices}, which need{'s' * (len(needless) == 1)} no trial."
    if {"exchange", "optuna"} <= set(drawn):
        caption += " Both strategies may make the same number of trials."
    return Drawing("trials", OVER_TRIALS, figure, caption)


_WITHOUT_LINE = ("plain", "uniform", "included")


def draw_additivity(found: Sequence[Result], words: str) -> Drawing | Absent:
    """Each recipe's measured drift against the predicted one."""
    own = [each for each in found if each.predicted > 0 and each.drift > 0]
    if len(own) < 2:
        return Absent(ADDITIVITY, "Fewer than two recipes have both a predicted and a measured drift.")
    figure = style.new_figure(3.6)
    axes = figure.subplots()
    predicted, measured = np.array([each.predicted for each in own]), np.array([each.drift for each in own])
    for axis in ("x", "y"):
        _log_axis(axes, axis, [predicted, measured])
    limits = axes.get_xlim()
    axes.plot(limits, limits, color=style.MUTED, linewidth=1, zorder=1)
    for at, each in enumerate(own):
        axes.plot(
            predicted[at], measured[at], MARKS[each.strategy], color=COLOURS[each.strategy], markersize=7, zorder=3
        )
    _number(axes, predicted, measured, [found.index(each) + 1 for each in own])
    axes.set_xlabel("predicted: root of the sum of squared errors of the output")
    axes.set_ylabel("measured: rel. L2 drift")
    axes.grid()
    _legend(figure, [each.strategy for each in own])
    caption = "Each recipe, with its number in the table, in the cases of the search. The line: as predicted. " + words
    return Drawing("additivity", ADDITIVITY, figure, caption)


def drift_by_trial(trials: pd.DataFrame) -> pd.DataFrame:
    """The geometric mean over cases of each trial of a table `search_trials`; NaN where one is not finite."""
    with np.errstate(divide="ignore"):
        logs = trials.assign(log=np.log(trials["rel_l2"].astype(float)))
    means = logs.groupby(["strategy", "budget", "number"], sort=False)["log"].agg(lambda each: each.mean(skipna=False))
    return means.map(math.exp).rename("drift").reset_index()


def _log_axis(axes: Axes, which: str, values: Sequence[Any], has_zero: bool = False) -> float:
    """Sets scale and limits of an axis: log over several decades, else linear. Returns where a zero is drawn."""
    flat = np.concatenate([np.asarray(each, dtype=float).ravel() for each in values])
    flat = flat[np.isfinite(flat) & (flat > 0)]
    axis = axes.xaxis if which == "x" else axes.yaxis
    if flat.size and np.log10(flat.max() / flat.min()) >= _DECADES:
        low, high = style.log_range([flat])
        low = low / 2 if has_zero else low
        axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
        style.log_ticks(axis, low, high)
        return low
    low, high = (float(flat.min()), float(flat.max())) if flat.size else (0.0, 1.0)
    pad = max(0.1 * (high - low), 0.02 * high)
    low = 0.0 if has_zero else low - pad
    axes.set(**{f"{which}lim": (low, high + pad)})
    axis.set_major_locator(MaxNLocator(6))
    return low


def _number(axes: Axes, x: np.ndarray, y: np.ndarray, numbers: Sequence[int]) -> None:
    """Writes the number of each point beside it; points that would cover each other share a label."""
    shares = axes.transAxes.inverted().transform(axes.transData.transform(np.column_stack([x, y])))
    groups: dict[tuple[float, float], list[int]] = {}
    for at, share in enumerate(shares):
        near = (each for each in groups if abs(each[0] - share[0]) < 0.04 and abs(each[1] - share[1]) < 0.05)
        groups.setdefault(next(near, (share[0], share[1])), []).append(at)
    for members in groups.values():
        text = ", ".join(str(numbers[at]) for at in members)
        place: dict[str, Any] = {
            "xytext": (6, 4),
            "textcoords": "offset points",
            "fontsize": 8.5,
            "color": style.INK,
            "zorder": 6,
        }
        axes.annotate(text, (x[members[0]], y[members[0]]), **place)


def _legend(figure: Any, strategies: Sequence[str], lines: bool = False) -> None:
    names = [name for name in WORDS if name in strategies]
    handles = [
        Line2D(
            [],
            [],
            color=COLOURS[name],
            marker=None if lines else MARKS[name],
            linestyle=_line(name) if lines else "none",
        )
        for name in names
    ]
    labels = [WORDS[name] for name in names]
    figure.legend(
        handles, labels, loc="outside upper left", ncols=min(4, len(names)), borderaxespad=0.2, handlelength=1.8
    )


def _line(name: str) -> Any:
    dashes: Mapping[str, Any] = {"knapsack": (0, (4, 1.5)), "greedy": (4, (4, 4))}
    return dashes.get(name, "-")
