"""A run as its figures see it: the variants to show, cleaned tables, and the rows that the layout names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from precision_lab.numerics.formats import REDUCED_FORMATS
from precision_lab.record.address import split_address
from precision_lab.record.layout import Layout, Stream
from precision_lab.record.manifest import Manifest
from precision_lab.record.run import Run
from precision_lab.record.summary import Dtypes, Quantity, VariantSummary
from precision_lab.report.figures.selection import drift_profiles, farthest_first

HEADROOM = tuple(f"headroom_bits_{fmt.name}" for fmt in REDUCED_FORMATS)
CASE = ("prompt_id", "seed")
MOST_VARIANTS = 8
"""The most variants in a figure with a line or a panel for each: the reference, and one for each plain colour."""

_GENERATION = ("variant", *CASE)
_POSITION = ("branch", "step", "component", "site", "port", "stream", "block")
_TEXT = frozenset({"variant", "reference", "mode", "branch", "component", "site", "port", "stream", "what"})
_UNKNOWN = Quantity(None)


@dataclass(frozen=True)
class View:
    """A run, and what its figures need beyond the record.

    A table that was not measured is None. Numbers are float64 and missing text is empty. `activations` and `drift` have
    one more column, `nonfinite`; values of non-finite tensors (amax, headroom, rel_l2, kl) are NaN, so that no
    statistic mixes them with finite ones.
    """

    run: Run

    @classmethod
    def open(cls, run: Run | Path) -> View:
        """A run, finished or not. Raises InputError if a folder holds none, or a file cannot be read."""
        return cls(Run.open(run) if isinstance(run, Path) else run)

    @property
    def layout(self) -> Layout:
        return self.run.layout

    @property
    def manifest(self) -> Manifest:
        return self.run.manifest

    @property
    def reference(self) -> str:
        """The variant that drift is measured against."""
        return self.run.reference

    @property
    def baseline(self) -> str:
        """The variant that ratios of time are taken to."""
        return self.manifest.baseline

    @cached_property
    def activations(self) -> pd.DataFrame | None:
        """One row for each recorded array with a range."""
        values = ("amax", "num_nan", "num_inf", "order", *HEADROOM)
        table = self._clean("activations", (*_GENERATION, *_POSITION, "sigma"), values)
        if table is None:
            return None
        table["nonfinite"] = (table["num_nan"] > 0) | (table["num_inf"] > 0)
        table.loc[table["nonfinite"], ["amax", *HEADROOM]] = np.nan
        table = table[table["nonfinite"] | table["amax"].notna()]  # rows of other probes have no range
        return table if len(table) else None

    @cached_property
    def drift(self) -> pd.DataFrame | None:
        """One row for each array that was compared with the reference's."""
        values = ("rel_l2", "num_nonfinite", "kl")
        table = self._clean("drift", (*_GENERATION, *_POSITION, "reference", "mode"), values)
        if table is None:
            return None
        table["nonfinite"] = table["num_nonfinite"] > 0
        table.loc[table["nonfinite"], ["rel_l2", "kl"]] = np.nan
        return table

    @cached_property
    def against_reference(self) -> pd.DataFrame | None:
        """The drift of each variant from the reference that takes the same steps."""
        if self.drift is None:
            return None
        own = {name: entry.reference for name, entry in self.manifest.variants.items()}
        names = self.drift["variant"].unique()
        expected = self.drift["variant"].map({name: own.get(name, self.reference) for name in names})
        return self.drift[(self.drift["reference"] == expected) & (self.drift["variant"] != expected)]

    @cached_property
    def latency(self) -> pd.DataFrame | None:
        """One row for each timed sample."""
        return self._clean("latency", ("variant", "round", "order", "what", "seconds"), ())

    @cached_property
    def contributions(self) -> pd.DataFrame | None:
        """Shares of the final streams in the main branch; None for a run without the contributions probe."""
        table = self._clean("activations", (*_GENERATION, *_POSITION), ("final_share",))
        if table is None:
            return None
        rows = main_branch(table[table["final_share"].notna()], self.layout)
        return rows if len(rows) else None

    @cached_property
    def variants(self) -> tuple[str, ...]:
        """The reference, then the others as the summary orders them, or the manifest of an unfinished run."""
        summary = self.run.summary
        names = list(summary.variants if summary and summary.variants else self.manifest.variants)
        for table in (self.activations, self.drift, self.latency):
            if table is not None:
                names += sorted(table["variant"].unique())
        return tuple(sorted(dict.fromkeys(names), key=lambda name: name != self.reference))

    @cached_property
    def shown(self) -> tuple[str, ...]:
        """The variants of figures that would be crowded, in the order of `variants`.

        Of many variants, the reference, the baseline and those whose result drifts most differently; without drift the
        first.
        """
        if len(self.variants) <= MOST_VARIANTS:
            return self.variants
        chosen = list(self.variants[:MOST_VARIANTS])
        if self.drift is not None:
            rows = results(self.drift, self.layout)
            rows = rows[(rows["mode"] == "free") & rows["variant"].isin(self.variants)]
            profiles = drift_profiles(rows[rows["variant"] != self.reference])
            if len(profiles):
                first = self.baseline if self.baseline in profiles.index else str(profiles.index[0])
                chosen = [self.reference, *farthest_first(profiles, first, MOST_VARIANTS - 1)]
        return tuple(name for name in self.variants if name in chosen)

    @property
    def by_colour(self) -> tuple[str, ...]:
        """All variants, those shown in crowded figures first: they get the plain colours."""
        return tuple(sorted(self.variants, key=lambda name: name not in self.shown))

    @property
    def selection(self) -> str:
        """A sentence for captions on how the variants shown were chosen; empty if all are."""
        return self._chosen("the reference, the baseline", 0)

    @property
    def left_out(self) -> str:
        """The same with the names of those that are not shown."""
        return self.selection + self._others

    @property
    def left_out_of_drift(self) -> str:
        """The same for figures of the distance from the reference, which do not draw the reference."""
        return self._chosen("the baseline", 1) + self._others

    def _chosen(self, first: str, undrawn: int) -> str:
        if len(self.shown) == len(self.variants):
            return ""
        return (
            f" The figure shows {len(self.shown) - undrawn} of {len(self.variants) - undrawn} variants: {first} and "
            f"those whose drift of the {self.layout.result.title} differs most."
        )

    @property
    def _others(self) -> str:
        others = [name for name in self.variants if name not in self.shown]
        return f" Left out: {', '.join(others)}." if others else ""

    @property
    def in_branch(self) -> str:
        """`; branch NAME (its meaning)`, for captions of figures of the main branch; empty without branches."""
        main = self.layout.main_branch
        return f"; branch {main} ({self.layout.branches[main]})" if main else ""

    @cached_property
    def levels(self) -> dict[int, float]:
        """The level of each step; empty where steps have none, or no activations were recorded."""
        if self.activations is None or not self.layout.level:
            return {}
        rows = self.activations.dropna(subset=["step", "sigma"]).drop_duplicates("step")
        return {int(step): float(sigma) for step, sigma in zip(rows["step"], rows["sigma"], strict=True)}

    @property
    def symbol(self) -> str:
        """The last word of the level's name, for narrow places: σ of "noise level σ"."""
        return self.layout.level.rpartition(" ")[2]

    def entry(self, variant: str) -> VariantSummary:
        """The summary's entry of a variant; for an unfinished run the manifest's, without any numbers."""
        summary = self.run.summary
        if summary and variant in summary.variants:
            return summary.variants[variant]
        stated = self.manifest.variants.get(variant)
        return VariantSummary(
            dtype=Dtypes(self.manifest.checkpoint.weights_dtype, stated.dtype if stated else ""),
            techniques=stated.techniques if stated else (),
            error=self.manifest.errors.get(variant),
            expect=stated.expect if stated else "any",
            expectation_met=True,
            amax_final=_UNKNOWN,
            latent_rel_l2=_UNKNOWN,
            psnr_db=_UNKNOWN,
            ssim=_UNKNOWN,
            num_nonfinite=_UNKNOWN,
            first_nonfinite=None,
            near_misses=None,
            latency=None,
            peak_memory_bytes=_UNKNOWN,
        )

    def _clean(self, name: str, keys: Sequence[str], values: Sequence[str]) -> pd.DataFrame | None:
        """The named columns of a table, or None if it has no rows; `values` that no probe measured are NaN."""
        table = self.run.tables[name]
        if not len(table):
            return None
        table = table.reindex(columns=[*keys, *values])
        text = [column for column in table.columns if column in _TEXT]
        numbers = [column for column in table.columns if column not in _TEXT]
        table[text] = table[text].fillna("")
        table[numbers] = table[numbers].astype("float64").replace([np.inf, -np.inf], np.nan)
        return table


def main_branch(table: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """Without the rows of the other branches; a run without branches loses none."""
    return table[~table["branch"].isin(layout.other_branches)]


def block_outputs(table: pd.DataFrame, layout: Layout, stream: str) -> pd.DataFrame:
    """Rows of a residual stream as it leaves each block of the default component, inside steps."""
    port = layout.streams[stream].port
    inside = table["block"].notna() & table["step"].notna()
    rows = table[(table["component"] == layout.default) & (table["port"] == port) & inside]
    blocks = [site for site in rows["site"].unique() if layout.is_block(layout.default, site)]
    return rows[rows["site"].isin(blocks)]


def outputs(table: pd.DataFrame, layout: Layout, site: str) -> pd.DataFrame:
    """Rows of the output of one module of the default component."""
    return table[(table["component"] == layout.default) & (table["site"] == site) & (table["port"] == "out")]


def results(table: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """Rows of the result of each step."""
    component, site = split_address(layout.result.address, layout.default)
    return table[(table["component"] == component) & (table["site"] == site) & (table["port"] == "out")]


def heading(stream: Stream) -> str:
    """The title of a stream at the head of a panel: `Image stream`."""
    return stream.title[:1].upper() + stream.title[1:]


def spread(rows: pd.DataFrame, by: str, value: str) -> pd.DataFrame:
    """Median, least and greatest finite `value` for each `by`; columns median, min, max."""
    return rows.groupby(by)[value].agg(["median", "min", "max"])


def first_failure(rows: pd.DataFrame) -> pd.DataFrame:
    """Non-finite rows of the first step in which a generation has any.

    Later steps start from a state that is already lost, so they say nothing on where the failure begins.
    """
    bad = rows[rows["nonfinite"]]
    first = bad.groupby(list(_GENERATION))["step"].transform("min")
    return bad[bad["step"] == first]
