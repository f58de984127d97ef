"""A run in Python: `load_run` gives its frames, and its figures as those of matplotlib."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from precision_lab.analysis.claims import Claim, judge
from precision_lab.analysis.summary import claim_entry, variants
from precision_lab.errors import InputError
from precision_lab.record import manifest
from precision_lab.record.columns import Column
from precision_lab.record.culprits import holds_culprits
from precision_lab.record.folders import user_path
from precision_lab.record.layout import Layout
from precision_lab.record.manifest import Manifest
from precision_lab.record.run import Run
from precision_lab.record.scan import holds_scan
from precision_lab.record.search import holds_search
from precision_lab.report import frames
from precision_lab.report.figures import (
    claim_forest,
    contributions,
    drift,
    drift_surface,
    exponents,
    factorial,
    growth,
    images,
    latency,
    style,
    surface,
    ticks,
    variant_forest,
)
from precision_lab.report.figures.style import Absent, Drawing
from precision_lab.report.view import View

_OTHERS = {
    "a scan of sensitivity": holds_scan,
    "a search for culprits": holds_culprits,
    "a search for recipes": holds_search,
}


def load_run(folder: str | os.PathLike[str]) -> LoadedRun:
    """The run in a folder, finished or not; its files are read when they are first used, and no model is needed.

    Raises InputError, a ValueError, if the folder holds no run, and names the newest run below it, if there is one.
    """
    path = user_path(folder)
    for what, holds in _OTHERS.items():
        if holds(path):
            raise InputError(f"{path} holds {what}, expected the run of an experiment")
    if path.is_dir() and not (path / manifest.FILE).exists():
        below = sorted(found.parent for depth in ("*", "*/*") for found in path.glob(f"{depth}/{manifest.FILE}"))
        if below:
            newest = max(below, key=lambda run: (run.name, str(run)))
            count = f"{len(below)} run{'s' * (len(below) != 1)} below it"
            raise InputError(
                f"{path} is not the folder of a run: there is no {manifest.FILE} in it. It has {count}. "
                f"Did you mean {newest}?"
            )
    return LoadedRun(Run.open(path))


class LoadedRun:
    """The results of a run. Frames are yours to change: figures are drawn from the files.

    Each frame has the columns that `columns` describes, in their dtypes: `string`, `boolean` and `Int64` hold `pd.NA`
    where a row has no value, and `float64` holds NaN. Reading a damaged file raises InputError that names it.
    """

    def __init__(self, run: Run):
        self._run = run

    def __repr__(self) -> str:
        about = self.manifest
        count = len(about.variants)
        return f"<run {about.experiment}: {count} variants of {about.checkpoint.name}, {about.status}, {self.path}>"

    @property
    def path(self) -> Path:
        """The folder."""
        return self._run.path

    @property
    def manifest(self) -> Manifest:
        """Experiment, environment, checkpoint, settings, times and status."""
        return self._run.manifest

    @property
    def layout(self) -> Layout:
        """Components, blocks, streams, branches and result of the subject."""
        return self._run.layout

    @property
    def config(self) -> str:
        """The resolved configuration, as yaml."""
        return self._run.config

    @cached_property
    def activations(self) -> pd.DataFrame:
        """One row for each array that a probe observed: where, then its statistics."""
        return self.table("activations")

    @cached_property
    def drift(self) -> pd.DataFrame:
        """One row for each array that was compared with the reference's."""
        return self.table("drift")

    @cached_property
    def latency(self) -> pd.DataFrame:
        """One row for each timed sample; `seconds` of a step."""
        return self.table("latency")

    @cached_property
    def generations(self) -> pd.DataFrame:
        """One row for each generation: extremes and digest of its picture or result."""
        return self.table("generations")

    @cached_property
    def nonfinite(self) -> pd.DataFrame:
        """One row for each generation with values that are not finite: where the first one arose."""
        return self.table("nonfinite")

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row for each variant, by its name. A run that was not judged yet is judged; nothing is written."""
        judged = self._run.summary
        return frames.summary(judged.variants if judged else variants(self._run))

    @cached_property
    def claims(self) -> pd.DataFrame:
        """One row for each claim, by its id, with verdict, effect and interval; judged as `summary` is."""
        judged = self._run.summary
        stated = [] if judged else [Claim.from_dict(raw) for raw in self.manifest.claims]
        return frames.claims(judged.claims if judged else [claim_entry(c, judge(c, self._run)) for c in stated])

    @property
    def figures(self) -> Figures:
        """The figures of the report."""
        return Figures(View(self._run))

    def table(self, name: str) -> pd.DataFrame:
        """A table by its name, also one that a probe wrote, such as `exponents`; empty if the run has none.

        Raises InputError for a file that cannot be read.
        """
        return frames.typed(self._run.tables[name], self._declared(name)).copy()

    def columns(self, name: str) -> pd.DataFrame:
        """What the columns of a frame are: dtype, unit and meaning, by name.

        name: of a frame, such as "activations" or "summary", or of a probe's table.
        """
        return frames.described(self._declared(name))

    def _declared(self, name: str) -> list[Column]:
        return list(frames.columns(self._run, name))


class Figures:
    """The figures of a run's report, each drawn when it is called.

    Each method raises InputError, with the reason, if the run has no data for its figure. A figure is one of
    matplotlib's own, without pyplot: `savefig` writes it, and a notebook shows it.
    """

    def __init__(self, view: View):
        self._view = view

    def growth(self) -> Figure:
        """amax of each residual stream over the blocks, log scale, a line for each variant."""
        return self._drawn(growth.draw)

    def surface(self) -> Figure:
        """amax of the main stream over blocks and steps."""
        return self._drawn(surface.draw)

    def exponents(self) -> Figure:
        """How often each binary exponent occurs, by block; needs the probe `exponents`."""
        return self._drawn(exponents.draw)

    def contributions(self) -> Figure:
        """The share of the final stream that each branch gave; needs the probe `contributions`."""
        return self._drawn(contributions.draw)

    def pictures(self) -> Figure:
        """The pictures of each variant, and what differs from the reference's."""
        return self._drawn(images.draw)

    def variants(self) -> Figure:
        """The ratio of each variant to the baseline with its interval; of runs with many variants."""
        return self._drawn(variant_forest.draw)

    def drift_steps(self) -> Figure:
        """rel_l2 of the result over the steps, log scale."""
        return self._drawn(drift.draw_steps)

    def drift_divergence(self) -> Figure:
        """KL divergence of the result's distribution over the steps, in nats; of language models."""
        return self._drawn(drift.draw_divergence)

    def drift_blocks(self) -> Figure:
        """rel_l2 of block outputs over the blocks, accumulated and local."""
        return self._drawn(drift.draw_blocks)

    def drift_surface(self) -> Figure:
        """rel_l2 of block outputs over blocks and steps, a panel for each variant."""
        return self._drawn(drift_surface.draw)

    def factorial(self) -> Figure:
        """Effects and interactions of techniques; of factorial experiments."""
        return self._drawn(factorial.draw)

    def latency(self) -> Figure:
        """Times of a step, and their ratios to the baseline."""
        return self._drawn(latency.draw)

    def claims(self) -> Figure:
        """The effect of each claim with its interval, beside what would support it."""
        return self._drawn(claim_forest.draw)

    def _drawn(self, draw: Callable[[View], Drawing | Absent | None]) -> Figure:
        with style.theme():
            drawing = draw(self._view)
            if isinstance(drawing, Drawing):
                ticks.write_powers_as_text(drawing.figure)
                drawing.figure.draw_without_rendering()  # makes the ticks, in the style of the report
                return drawing.figure
        reason = drawing.reason if drawing else "This run has no data for this figure."
        raise InputError(f"{self._view.run.path}: {reason}")
