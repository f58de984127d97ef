"""Static scales of the inputs in `search strategy=fp8_scales`: from recorded ranges, tried on held-out cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import frexp
from pathlib import Path
from typing import Any

import pandas as pd

from precision_lab.analysis.scales.choice import Goal
from precision_lab.analysis.scales.evidence import case_words, number, place_words
from precision_lab.analysis.scales.heldout import failures
from precision_lab.analysis.scales.inputs import by_margin, on_cases
from precision_lab.analysis.scales.ranges import CASE, ranges_of
from precision_lab.analysis.scales.weights import KINDS
from precision_lab.cli import scales_schema
from precision_lab.errors import InputError, expected
from precision_lab.instrument.sites import Site
from precision_lab.numerics.formats import FORMATS
from precision_lab.record.files import write_atomically
from precision_lab.record.layout import Layout
from precision_lab.record.patterns import patterns_of
from precision_lab.record.run import Run

STATIC = "static"
PORTS = ("in",)
"""What the range catalogue records: the inputs."""

_CODED = "precision_lab.techniques.coded_weights.CodedWeights"
_CODINGS = "precision_lab.model.codings.float8"


def goal_of(settings: scales_schema.Fp8Scales, command: Sequence[str]) -> Goal | None:
    """What the inputs must fit in; None if they stay as they are.

    Raises InputError for an unknown kind of scale, and for a coverage set from which nothing is chosen.
    """
    given = settings.inputs
    if given.scale is None:
        for argument in command:
            if argument.lstrip("+~").startswith(("coverage.", "coverage=", "inputs.margin_bits=")):
                raise InputError(f"{argument}: no scale is chosen from ranges, expected inputs.scale=static with it")
        return None
    if given.scale != STATIC:
        raise InputError(f"inputs.scale is {given.scale!r}, {expected(['null', STATIC], given.scale)}")
    try:
        return Goal(FORMATS["float8_e4m3fn"], given.margin_bits)
    except InputError as error:
        raise InputError(str(error).replace("margin.bits", "inputs.margin_bits", 1)) from None


def recorded_inputs(runs: Mapping[str, Run], chosen_sites: Sequence[Site]) -> pd.DataFrame:
    """The ranges of the inputs of these sites of the plain model, in fp32 and in bfloat16, in every case of the runs.

    Raises InputError for runs that did not record one of them.
    """
    frames = []
    for name, run in runs.items():
        if not run.manifest.reference.is_plain:
            raise InputError(f"{run.path}: its reference is {run.manifest.reference.words}, expected the plain model")
        plain_ones = [
            variant
            for variant, entry in run.manifest.variants.items()
            if not entry.techniques and entry.dtype == "bfloat16"
        ]
        found = ranges_of({name: run}, [run.reference, *plain_ones], kind="in")
        places = set(found[["component", "site"]].itertuples(index=False, name=None))
        missing = [site for site in chosen_sites if (site.component, site.path) not in places]
        if missing:
            raise InputError(
                f"{run.path} did not record the inputs of {missing[0]}, nor of {len(missing) - 1} others. Expected a "
                "run with probe.range.ports=[in] and the linears of `of` as probe.range.sites"
            )
        frames.append(found)
    ranges = pd.concat(frames, ignore_index=True)
    wanted = {(site.component, site.path) for site in chosen_sites}
    return ranges[pd.MultiIndex.from_frame(ranges[["component", "site"]]).isin(wanted)].reset_index(drop=True)


def nodes_of(
    weights: pd.DataFrame, scales: pd.DataFrame | None, sites: Sequence[Site], default: str
) -> dict[str, dict[str, Any]]:
    """The techniques with these scales of weights and inputs, one for each pair that some linear has.

    scales: of the inputs; None for one a token.
    """
    every = [(site.component, site.path) for site in sites]
    keys = ["component", "site"]
    both = weights[[*keys, "scale"]].assign(input_scale="token")
    if scales is not None:
        both = weights[[*keys, "scale"]].merge(
            scales[[*keys, "scale"]].rename(columns={"scale": "input_scale"}), on=keys
        )
    nodes: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        of_kind = both[both["scale"] == kind]
        for scale in sorted(of_kind["input_scale"].unique()):
            places = of_kind.loc[of_kind["input_scale"] == scale, keys].itertuples(index=False, name=None)
            nodes[f"fp8_{kind}_inputs_{_text(scale)}"] = {
                "_target_": _CODED,
                "coding": {"_target_": f"{_CODINGS}.Float8", "scale": kind},
                "inputs": {"_target_": f"{_CODINGS}.Float8Inputs", "scale": _plain(scale)},
                "sites": patterns_of(list(places), every, default),
            }
    return nodes


@dataclass(frozen=True)
class Findings:
    """Scales of inputs and how they do.

    scales: see `chosen_inputs`. failing: the held-out cases in which an input saturates, `by` arithmetic on the ranges
    of the plain model and as measured in the run, each with its worst `place`. margins: see `inputs.by_margin`.
    """

    goal: Goal
    scales: pd.DataFrame
    failing: pd.DataFrame
    margins: pd.DataFrame
    cases: int

    def write(self, out: Path) -> None:
        """Writes the tables."""
        tables = {"inputs": self.scales, "input_failures": self.failing, "input_margins": self.margins}
        for name, table in tables.items():
            path = out / f"{name}.parquet"
            write_atomically(path, lambda file, table=table: table.to_parquet(file, index=False))  # type: ignore[misc]

    def about(self) -> dict[str, Any]:
        """What fp8_scales.json says of them."""
        return {
            "margin_bits": self.goal.margin_bits,
            "linears": len(self.scales),
            "scales": {
                _power(scale): int((self.scales["scale"] == scale).sum()) for scale in sorted(set(self.scales["scale"]))
            },
            "least_normal_bits": number(self.scales["normal_bits"].min()),
            "heldout_cases": self.cases,
            "saturating_cases": {by: int((self.failing["by"] == by).sum()) for by in ("arithmetic", "run")},
            "failures": [
                {key: row[key] for key in ("by", "case", "place", "places")}
                | {"headroom_bits": number(row["headroom_bits"])}
                for row in self.failing.to_dict("records")
            ],
            "margins": [
                {key: row[key] for key in ("margin_bits", "cases", "failed", "places", "case", "place")}
                | {"headroom_bits": number(row["headroom_bits"])}
                for row in self.margins.to_dict("records")
            ],
        }

    def remarks(self) -> list[str]:
        """What was chosen, and which held-out case fails, or comes nearest to it, at which site."""
        least, most = _power(self.scales["scale"].min()), _power(self.scales["scale"].max())
        kinds = self.scales["scale"].nunique()
        about = f"Static scales of the inputs of {len(self.scales)} linears, margin {self.goal.margin_bits:g} bits"
        lines = [f"{about}: {kinds} powers of two from {least} to {most}."]
        for by, words in (("arithmetic", "by arithmetic"), ("run", "in the run")):
            own = self.failing[self.failing["by"] == by]
            if len(own):
                worst = own.iloc[0]
                lines.append(
                    f"Held out, {words}: inputs saturate in {len(own)} of {self.cases} cases; worst {worst['case']}, "
                    f"at {worst['place']}, {-worst['headroom_bits']:.2f} bits beyond 448 times its scale."
                )
            else:
                lines.append(f"Held out, {words}: no input saturates in {self.cases} cases.")
        failed = self.margins[self.margins["failed"] > 0]
        if len(failed):
            row = failed.iloc[-1]
            lines.append(
                f"With a margin of {row['margin_bits']:g} bits, {row['failed']} of {row['cases']} held-out cases would "
                f"saturate, worst {row['case']}, at {row['place']}."
            )
        return lines


def findings(
    coverage: pd.DataFrame,
    scales: pd.DataFrame,
    goal: Goal,
    tried: Mapping[str, Run],
    recipe: str,
    sites: Sequence[Site],
) -> Findings:
    """The scales on the held-out cases of `tried`, whose variant `recipe` used them."""
    layout: Layout = next(iter(tried.values())).layout
    plain = recorded_inputs(tried, sites)
    plain = plain[plain["variant"] == next(iter(tried.values())).reference]
    own = ranges_of(tried, [recipe], kind="in")
    own = own[pd.MultiIndex.from_frame(own[["component", "site"]]).isin(_places(scales))]
    expected = failures(on_cases(plain, scales, goal)).assign(by="arithmetic")
    measured = failures(on_cases(own, scales, goal)).assign(by="run")
    failing = pd.concat([expected, measured], ignore_index=True)
    margins = by_margin(coverage, plain, goal)
    return Findings(
        goal,
        scales,
        _in_words(failing, tried, layout),
        _in_words(margins, tried, layout),
        len(plain[CASE].drop_duplicates()),
    )


def _places(scales: pd.DataFrame) -> set[tuple[str, str]]:
    return set(scales[["component", "site"]].itertuples(index=False, name=None))


def _in_words(rows: pd.DataFrame, tried: Mapping[str, Run], layout: Layout) -> pd.DataFrame:
    cases = [case_words(row, tried) for _, row in rows.iterrows()]
    places = [place_words(row, layout) for _, row in rows.iterrows()]
    return rows.assign(case=cases, place=places)


def _text(scale: str | float) -> str:
    """`token`, or a power of two as part of a name: `2em3` is 2^-3."""
    return scale if isinstance(scale, str) else _power(scale).replace("^-", "em").replace("^", "e")


def _power(scale: float) -> str:
    """A power of two in words: `2^-3`."""
    return f"2^{frexp(scale)[1] - 1}"


def _plain(scale: str | float) -> str | float | int:
    """A scale as yaml shows it."""
    if isinstance(scale, str):
        return scale
    return int(scale) if float(scale).is_integer() else float(scale)
