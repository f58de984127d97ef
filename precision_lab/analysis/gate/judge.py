"""A run against an entry of a baseline: everything in the entry is compared, and nothing passes uncompared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from precision_lab.analysis.gate import bands, cost, drift, rounding, sketches
from precision_lab.analysis.gate.bands import Margin
from precision_lab.analysis.gate.baseline import Choice
from precision_lab.analysis.gate.origins import arisen
from precision_lab.analysis.gate.settings import require_same, settings_of
from precision_lab.analysis.gate.violation import RAISED, UNSOUND, Findings, Violation, ordered
from precision_lab.analysis.health import health
from precision_lab.errors import InputError
from precision_lab.record.run import Run


@dataclass(frozen=True)
class Limits:
    """How far from a baseline a run may be; relative deviations, bits, and shares of times and memory.

    tolerance: None allows what the back end of the run needs (`sketches.tolerance_of`).
    """

    ranges: Margin = field(default_factory=Margin)
    drift: Margin = field(default_factory=lambda: Margin(bits=3.0, spread=1.0))
    tolerance: float | None = None
    noise_factor: float = sketches.NOISE_FACTOR
    latency: float = 2.0
    latency_ratio: float = 0.5
    memory: float = 0.25

    def on(self, backend: str) -> Limits:
        """These limits with the tolerance of a back end where none is given."""
        return self if self.tolerance is not None else replace(self, tolerance=sketches.tolerance_of(backend))


def judge(run: Run, config: Mapping[str, Any], choice: Choice, limits: Limits, baseline: str) -> Findings:
    """Violations in reading order, and the number of comparisons of every kind.

    config: the run's config.yaml; baseline: the name of the file, for messages. Times and memory are compared on the
    entry's own device only. Raises InputError if the run is not finished, was made with other settings, or lacks
    something that the entry holds.
    """
    manifest = run.completed().manifest
    require_same(settings_of(manifest, config), choice.entry.settings, baseline)
    findings = Findings(checks=Counter(variants=len(manifest.variants)))
    failed = manifest.errors
    findings.violations += [
        Violation(kind="variants", metric=RAISED, expected="a result", got=error, variant=name)
        for name, error in failed.items()
    ]
    findings.violations += _unsound(run)
    for part in _compared(run, choice, limits):
        findings.add(part)
    for kind in held(choice):
        if not findings.checks[kind] and not failed:  # of what failed there is a violation
            raise InputError(
                f"The run in {run.path} has nothing to compare of {kind}, and the baseline has. "
                "Run the experiment of the baseline, or learn it again with gate.update=true"
            )
    findings.violations = ordered(findings.violations)
    return findings


def _unsound(run: Run) -> list[Violation]:
    """What makes the run meaningless as a whole, whatever the baseline says."""
    return [
        Violation(kind="variants", metric=UNSOUND, expected="a sound run", got=entry.text, variant=entry.variant or "-")
        for entry in health(run)
    ]


def judge_failure(
    run: Run, config: Mapping[str, Any], choice: Choice, baseline: str, message: str, place: Mapping[str, Any]
) -> Findings:
    """The only violation of a run that an exception ended: the variant `reference`, or what it says of the place.

    message: the exception; place: component, site, step and branch where it was raised, as far as they are known.
    Raises InputError if the run was made with other settings than the entry: then the code need not be the cause.
    """
    manifest, layout = run.manifest, run.layout
    require_same(settings_of(manifest, config), choice.entry.settings, baseline)
    shown = layout.address(place["component"], place["site"]) if place else ""
    raised = Violation(
        kind="variants", metric=RAISED, expected="a result", got=message, variant=run.reference, shown=shown, **place
    )
    return Findings([raised], Counter(variants=len(manifest.variants)))


def held(choice: Choice) -> list[str]:
    """The kinds of comparison that an entry asks for."""
    entry = choice.entry
    kinds = ["variants"]
    if len(entry.bands):
        kinds += ["sites", "dtypes", "nonfinite", "ranges"]
        kinds += ["headroom"] if entry.bands["log2_amax_max"].notna().any() else []
    kinds += ["sketches"] if len(entry.sketches) else []
    kinds += ["rounding"] if len(entry.rounding) else []
    kinds += ["drift"] if len(entry.drift) else []
    return kinds + (["latency", "memory"] if entry.cost and choice.same_device else [])


def _compared(run: Run, choice: Choice, limits: Limits) -> list[Findings]:
    entry, layout, failed = choice.entry, run.layout, set(run.manifest.errors)
    activations = _of_others(run.activations, {*failed, run.reference})
    found = []
    found.append(Findings(arisen(_of_others(run.nonfinite, {*failed, run.reference}), entry.bands, layout)))
    if "num_nan" in activations:
        found.append(bands.judge(_of_others(entry.bands, failed), activations, limits.ranges, layout))
    if len(entry.rounding):
        found.append(rounding.judge(_of_others(entry.rounding, failed), activations, layout))
    if len(entry.sketches) and len(run.sketches):
        tolerance = limits.on(run.manifest.environment.backend).tolerance
        assert tolerance is not None
        found.append(sketches.judge(entry.sketches, run.sketches, tolerance, limits.noise_factor, layout))
    drifts = _of_others(run.drift, failed)
    if len(drifts):
        found.append(drift.judge(_of_others(entry.drift, failed), drifts, limits.drift, entry.noise, layout))
    if choice.same_device:
        margins = {cost.LATENCY: limits.latency, cost.RATIO: limits.latency_ratio, cost.MEMORY: limits.memory}
        found.append(cost.judge(entry.cost, run.latency, run.manifest.baseline, margins))
    return found


def _of_others(table: pd.DataFrame, left_out: set[str]) -> pd.DataFrame:
    return table[~table["variant"].isin(left_out)]
