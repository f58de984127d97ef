"""Time and memory of a denoising step against a baseline of the same device.

A time is judged by its interval, never by its median: slower means that the whole 95 % interval of the median
lies above the baseline's by more than a margin. Machines whose processor has the same name differ in speed, and a
shared one slows everything: a fixed computation, timed before each step, is the yardstick by which the baseline's times
are scaled, and the margin is generous. In the ratio to the run's own baseline variant, paired within rounds, such a
slowdown cancels.

Whatever the margins, differences of less than a millisecond or 64 KiB are allowed: so much depends on when the process
is scheduled and when the arrays of an earlier step are freed, and for a small model it exceeds any relative margin.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.analysis.gate.violation import Findings, Violation
from precision_lab.errors import InputError
from precision_lab.numerics.intervals import Ratio, paired_ratio

LATENCY, RATIO, MEMORY, YARDSTICK = "step_seconds", "step_ratio", "peak_memory_bytes", "yardstick_seconds"
_LEAST_SECONDS = 1e-3
_LEAST_BYTES = 1 << 16


def measured(latency: pd.DataFrame, baseline: str) -> dict[str, dict[str, list[float] | float]]:
    """Per variant of the table `latency`: [median, lo, hi] of seconds and of the ratio to `baseline`, and peak memory.

    The ratio is omitted for `baseline` itself, and if `baseline` was not timed. The yardstick, the median of its times
    beside the variant's steps, is omitted if the table has none.
    """
    rows = latency[latency["what"] == "step"]
    seconds = {str(name): group.set_index("round")["seconds"] for name, group in rows.groupby("variant")}
    found: dict[str, dict[str, list[float] | float]] = {}
    yardsticks = rows.groupby("variant")[YARDSTICK].median().dropna() if YARDSTICK in rows else pd.Series(dtype=float)
    for name, samples in seconds.items():
        found[name] = {LATENCY: _rounded(paired_ratio(samples, np.ones(len(samples))))}
        if baseline in seconds and name != baseline:
            paired = pd.concat([samples, seconds[baseline]], axis=1, join="inner").to_numpy(float)
            found[name][RATIO] = _rounded(paired_ratio(paired[:, 0], paired[:, 1]))
        found[name][MEMORY] = int(rows.loc[rows["variant"] == name, "peak_memory_bytes"].max())
        if name in yardsticks:
            found[name][YARDSTICK] = float(f"{yardsticks[name]:.4g}")
    return found


def judge(learned: Mapping[str, Any], latency: pd.DataFrame, baseline: str, margins: Mapping[str, float]) -> Findings:
    """The times and memory that exceed `learned`, a result of `measured`, by more than the margin of each quantity.

    A margin is relative: 0.5 allows 50 % more. Times are scaled by the yardsticks where both have one.
    Raises InputError for `learned` of another form.
    """
    now = measured(latency, baseline)
    seconds = latency.loc[(latency["what"] == "step") & (latency["variant"] == baseline), "seconds"].median()
    slack = {LATENCY: _LEAST_SECONDS, RATIO: _LEAST_SECONDS / seconds, MEMORY: _LEAST_BYTES}
    findings = Findings()
    for variant, quantities in learned.items():
        measures = now.get(variant, {})
        for name, before in quantities.items():
            after = measures.get(name)
            if after is None or name == YARDSTICK:
                continue
            try:
                before = before if name == MEMORY else before[2]
                if name == LATENCY and YARDSTICK in quantities and YARDSTICK in measures:
                    before *= measures[YARDSTICK] / quantities[YARDSTICK]
                most = max(before * (1 + margins[name]), before + slack[name])
            except (ArithmeticError, IndexError, KeyError, TypeError) as error:
                shown = str(quantities)[:120]
                raise InputError(f"The times {shown} of {variant} cannot be read. Learn the baseline again") from error
            least = after[1] if isinstance(after, list) else after
            kind = "memory" if name == MEMORY else "latency"
            findings.checks += Counter({kind: 1})
            if not least <= most:
                findings.violations.append(
                    Violation(
                        kind=kind,
                        metric=name,
                        variant=variant,
                        expected=f"at most {most:.4g}",
                        got=f"{least:.4g}",
                        magnitude=math.log2(least / most) if least > 0 else math.inf,
                    )
                )
    return findings


def _rounded(ratio: Ratio) -> list[float]:
    """[median, lo, hi], rounded; for a single round, which has no interval, all three are its value."""
    lo, hi = (ratio.estimate if math.isnan(end) else end for end in (ratio.lo, ratio.hi))
    return [float(f"{value:.4g}") for value in (ratio.estimate, lo, hi)]
