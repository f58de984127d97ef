"""The files of a run as a report reads them, and the rows that its figures draw.

Nothing here needs a model: every figure can be made again from these files alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from precision_lab.analysis.summary import SCHEMA_VERSION, read_manifest
from precision_lab.errors import InputError, nearest
from precision_lab.numerics.formats import REDUCED_FORMATS
from precision_lab.record.tables import read
from precision_lab.report.figures.selection import drift_profiles, farthest_first

HEADROOM = tuple(f"headroom_bits_{fmt.name}" for fmt in REDUCED_FORMATS)
CASE = ("variant", "prompt_id", "seed")
POSITION = ("branch", "step", "component", "site", "port", "block")
MOST_VARIANTS = 8  # in a figure with a line or a panel for each: the reference and as many as there are plain colours
TEXT = ("variant", "reference", "mode", "branch", "component", "site", "port", "what")


@dataclass(frozen=True)
class Run:
    """What a run left. A table that was not measured is None.

    Numbers are float64 and missing text is empty. The column `nonfinite` is added to `activations` and `drift`; values
    of non-finite tensors (amax, headroom, rel_l2) are NaN, so that no statistic mixes them with finite ones.
    """

    path: Path
    manifest: dict[str, Any]
    summary: dict[str, Any]
    config: str
    activations: pd.DataFrame | None
    drift: pd.DataFrame | None
    latency: pd.DataFrame | None

    @property
    def reference(self) -> str:
        """The variant that drift refers to."""
        return str(self.summary.get("reference") or (self.manifest.get("reference") or {}).get("variant", "reference"))

    @property
    def baseline(self) -> str | None:
        """The variant that ratios of time refer to."""
        return self.manifest.get("baseline")

    @property
    def weights(self) -> str | None:
        """`trained`, `synthetic`, `published`, or None where the run does not say."""
        kind = self.summary.get("weights") or (self.manifest.get("checkpoint") or {}).get("weights")
        return str(kind) if kind else None

    @property
    def inflate(self) -> float:
        """The power of two by which the run multiplied the transformer's residual streams."""
        return float((self.manifest.get("checkpoint") or {}).get("inflate", 1.0))

    @cached_property
    def variants(self) -> tuple[str, ...]:
        """The reference, then the others as the summary orders them, or the manifest of an unfinished run."""
        names = list(self.summary.get("variants") or self.manifest.get("variants") or {})
        for table in (self.activations, self.drift, self.latency):
            if table is not None:
                names += sorted(table["variant"].unique())
        return tuple(sorted(dict.fromkeys(names), key=lambda name: name != self.reference))

    @cached_property
    def shown(self) -> tuple[str, ...]:
        """The variants of figures that would be crowded, in the order of `variants`.

        Of many, the reference, the baseline and those whose latents drift most differently; without drift the first.
        """
        if len(self.variants) <= MOST_VARIANTS:
            return self.variants
        chosen = list(self.variants[:MOST_VARIANTS])
        if self.drift is not None:
            rows = latents(self.drift)
            rows = rows[(rows["mode"] == "free") & rows["variant"].isin(self.variants)]
            profiles = drift_profiles(rows[rows["variant"] != self.reference])
            if len(profiles):
                first = self.baseline if self.baseline in profiles.index else str(profiles.index[0])
                chosen = [self.reference, *farthest_first(profiles, str(first), MOST_VARIANTS - 1)]
        return tuple(name for name in self.variants if name in chosen)

    @property
    def by_colour(self) -> tuple[str, ...]:
        """All variants, those shown in crowded figures first: they get the plain colours."""
        return tuple(sorted(self.variants, key=lambda name: name not in self.shown))

    @property
    def selection(self) -> str:
        """A sentence for captions on how the variants shown were chosen; empty if all are."""
        if len(self.shown) == len(self.variants):
            return ""
        return (
            f" Shown are {len(self.shown)} of {len(self.variants)} variants: the reference, the baseline and those "
            "whose latents drift most differently."
        )

    @property
    def left_out(self) -> str:
        """The same with the names of those that are not shown."""
        others = [name for name in self.variants if name not in self.shown]
        return f"{self.selection} Left out: {', '.join(others)}." if others else ""

    def entry(self, variant: str) -> dict[str, Any]:
        """What the summary says of a variant; of an unfinished run, what the manifest says."""
        for source in (self.summary, self.manifest):
            if variant in (source.get("variants") or {}):
                return dict(source["variants"][variant])
        return {}

    @cached_property
    def sigmas(self) -> dict[int, float]:
        """Noise level of each step, empty where no activations were recorded."""
        if self.activations is None:
            return {}
        rows = self.activations.dropna(subset=["step", "sigma"]).drop_duplicates("step")
        return {int(step): float(sigma) for step, sigma in zip(rows["step"], rows["sigma"], strict=True)}


def load(path: Path) -> Run:
    """Reads the run folder at `path`, finished or not.

    Raises InputError where it is no run folder, its schema_version is unknown, or a file cannot be read.
    """
    if not path.is_dir():
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise InputError(f"{path} is not a run folder: no such folder. {nearest(path.name, siblings)}")
    config = path / "config.yaml"
    return Run(
        path=path,
        manifest=read_manifest(path),
        summary=_read_summary(path),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        activations=_activations(path),
        drift=_drift(path),
        latency=_read(path, "latency", ("variant", "round", "order", "what", "seconds"), ()),
    )


def contributions(path: Path) -> pd.DataFrame | None:
    """Shares of the final streams, of the conditional branch; None for a run without the contributions probe."""
    table = _read(path, "activations", (*CASE, *POSITION), ("final_share",))
    if table is None:
        return None
    rows = conditional(table[table["final_share"].notna()])
    return rows if len(rows) else None


def _read_summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    if not path.is_file():
        return {}
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if summary.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{path}: schema_version {summary.get('schema_version')}, expected {SCHEMA_VERSION}")
    return summary


def _activations(run: Path) -> pd.DataFrame | None:
    table = _read(run, "activations", (*CASE, *POSITION, "sigma"), ("amax", "num_nan", "num_inf", "order", *HEADROOM))
    if table is None:
        return None
    table["nonfinite"] = (table["num_nan"] > 0) | (table["num_inf"] > 0)
    table.loc[table["nonfinite"], ["amax", *HEADROOM]] = np.nan
    # rows of other probes have no range
    table = table[table["nonfinite"] | table["amax"].notna()]
    return table if len(table) else None


def _drift(run: Path) -> pd.DataFrame | None:
    table = _read(run, "drift", (*CASE, *POSITION, "reference", "mode"), ("rel_l2", "num_nonfinite"))
    if table is None:
        return None
    table["nonfinite"] = table["num_nonfinite"] > 0
    table.loc[table["nonfinite"], "rel_l2"] = np.nan
    return table


def _read(run: Path, name: str, keys: Sequence[str], values: Sequence[str]) -> pd.DataFrame | None:
    """The columns of a table that figures need, or None if it has no rows; `values` that no probe measured are NaN."""
    try:
        table = read(run, name)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{run}: the table {name} cannot be read: {error}") from error
    if not len(table):
        return None
    missing = [key for key in keys if key not in table.columns]
    if missing:
        raise InputError(f"{run}: the table {name} has no column {missing[0]!r}. {nearest(missing[0], table.columns)}")
    table = table.reindex(columns=[*keys, *values])
    text = [key for key in keys if key in TEXT]
    numbers = [column for column in table.columns if column not in TEXT]
    table[text] = table[text].fillna("")
    table[numbers] = table[numbers].astype("float64").replace([np.inf, -np.inf], np.nan)
    return table


def conditional(table: pd.DataFrame) -> pd.DataFrame:
    """Without the rows of the unconditional branch; a run without guidance loses none."""
    return table[table["branch"] != "uncond"]


def block_outputs(table: pd.DataFrame, stream: str) -> pd.DataFrame:
    """Rows of the residual `stream` (img or txt) as it leaves each transformer block."""
    port = {"img": "out.0", "txt": "out.1"}[stream]
    rows = table[(table["component"] == "transformer") & (table["port"] == port) & table["block"].notna()]
    return rows[rows["site"].str.fullmatch(r"transformer_blocks\.\d+")]


def end_point(table: pd.DataFrame, site: str) -> pd.DataFrame:
    """Rows of one output outside the blocks: img_in, norm_out or proj_out."""
    return table[(table["component"] == "transformer") & (table["site"] == site) & (table["port"] == "out")]


def latents(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the latents after each Euler step."""
    return table[(table["component"] == "pipeline") & (table["site"] == "euler_step") & (table["port"] == "out")]


def spread(rows: pd.DataFrame, by: str, value: str) -> pd.DataFrame:
    """Median, least and greatest finite `value` for each `by`; columns median, min, max."""
    return rows.groupby(by)[value].agg(["median", "min", "max"])


def first_failure(rows: pd.DataFrame) -> pd.DataFrame:
    """Non-finite rows of the first step in which a generation has any.

    Later steps start from latents that are already lost, so they say nothing on where the failure begins.
    """
    bad = rows[rows["nonfinite"]]
    first = bad.groupby(list(CASE))["step"].transform("min")
    return bad[bad["step"] == first]
