"""What came of scales on the held-out cases, beside other variants: tables, page, and the last lines of the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from precision_lab.analysis.scales.choice import Choice, beyond, divisors
from precision_lab.analysis.scales.drift import compared, drifts
from precision_lab.analysis.scales.evidence import (
    Evidence,
    case_sets,
    case_words,
    failed_cases,
    names_of,
    number,
    place_words,
    strict,
)
from precision_lab.analysis.scales.heldout import by_margin, failures, measured, predicted
from precision_lab.analysis.scales.ranges import CASE, PLACE, at_places, ranges_of
from precision_lab.cli.report import judge_and_draw
from precision_lab.cli.scale_cases import RECIPE
from precision_lab.cli.scale_recipe import Nodes, effects, is_known, write_recipe
from precision_lab.cli.terminal import print_table
from precision_lab.numerics.scales import Division
from precision_lab.record.layout import Layout
from precision_lab.record.run import Run


@dataclass(frozen=True)
class Trial:
    """Chosen scales, and the runs that they were chosen from and tried in, by the names of their sets of cases.

    nodes: the recipe. variants: the techniques of each variant that computes in the format of the goal, with those of
    the recipe. ranges: of the coverage set. noise: the variant that is the baseline with reordered sums, or None.
    """

    choice: Choice
    nodes: Nodes
    variants: Mapping[str, Nodes]
    ranges: pd.DataFrame
    covered: Mapping[str, Run]
    tried: Mapping[str, Run]
    noise: str | None
    out: Path

    @property
    def layout(self) -> Layout:
        return next(iter(self.tried.values())).layout


def conclude(trial: Trial, console: Console) -> int:
    """Writes recipe, tables and page; prints the verdict; returns the exit code of the runs' claims."""
    from precision_lab.report import scales as page

    code = max(judge_and_draw(run, console) for run in trial.tried.values())
    evidence = evidence_of(trial)
    recipe = write_recipe(trial.out, RECIPE, trial.nodes, page.comment(evidence)) if trial.nodes else None
    evidence.write(trial.out)
    path = page.write(evidence, trial.out)
    print_table(console, page.HEADINGS, page.rows(evidence), page.title(evidence), folding=page.FOLDING)
    for remark in page.remarks(evidence):
        console.print(remark, soft_wrap=True)
    if recipe is not None:
        console.print(f"recipe: {recipe}", soft_wrap=True)
    console.print(f"report: {path}", soft_wrap=True)
    return code


def evidence_of(trial: Trial) -> Evidence:
    """The tables and the summary of a trial."""
    goal, layout, fmt = trial.choice.goal, trial.layout, trial.choice.goal.fmt
    reference = next(iter(trial.tried.values())).reference
    narrow = set(trial.ranges[PLACE].itertuples(index=False, name=None))
    unscaled_ranges = at_places(ranges_of(trial.tried, [reference]), narrow)
    others = [name for name in names_of(trial.tried) if name != RECIPE]
    variants, failing, divisors_of = [], [], []
    heldout = unscaled_ranges[:0]
    for name in [RECIPE, *others]:
        found = failed_cases(trial.tried, name).assign(variant=name, by="run")
        computed, least = None, None
        if name in trial.variants and is_known(trial.variants[name]):
            divisions, widened = effects(trial.variants[name])
            expected = predicted(unscaled_ranges, divisions, widened, fmt, layout)
            computed, least = failures(expected).assign(variant=name, by="arithmetic"), _least(expected, layout)
            divisors_of.append(_at_decisions(trial.choice.scales, divisions, layout).assign(variant=name))
            if name == RECIPE:
                heldout = measured(expected, ranges_of(trial.tried, [RECIPE]), fmt)
        variants.append(_counted(name, computed, least, found))
        failing += [found] if computed is None else [computed, found]
    drift = compared(trial.tried, RECIPE, others, trial.noise)
    drift_of_recipe = float(drifts(trial.tried, RECIPE).median(skipna=False))
    own = pd.DataFrame([{"against": RECIPE, "drift": drift_of_recipe}])
    margins = by_margin(trial.ranges, unscaled_ranges, trial.choice.parameters, fmt, layout)
    tables = {
        "scales": trial.choice.scales,
        "divisors": pd.concat(divisors_of, ignore_index=True),
        "heldout": heldout,
        "margins": _in_words(margins, trial),
        "variants": pd.DataFrame(variants).merge(pd.concat([own, drift]), left_on="variant", right_on="against"),
        "failures": _in_words(pd.concat(failing, ignore_index=True).reindex(columns=_FAILURE), trial),
        "unscaled": beyond(trial.ranges, *effects(trial.nodes), goal, layout),
    }
    return Evidence(_about(trial, tables), tables)


_FAILURE = ["variant", "by", *CASE, *PLACE, "branch", "step", "headroom_bits", "places", "num_nonfinite"]


def _counted(
    name: str, computed: pd.DataFrame | None, least: Mapping[str, Any] | None, found: pd.DataFrame
) -> dict[str, Any]:
    """In how many held-out cases a variant fails, by arithmetic and in its run, and its least headroom by arithmetic.

    Null by arithmetic where the effect of its techniques on ranges is not known.
    """
    known = {"overflows": None if computed is None else len(computed), "not_finite": len(found)}
    return {"variant": name, **known, **(least or {"headroom_bits": None, "least_at": None})}


def _least(expected: pd.DataFrame, layout: Layout) -> dict[str, Any]:
    """The least headroom of any place, and where it is."""
    row = expected.sort_values(["headroom_bits", "order"], kind="stable").iloc[0]
    return {"headroom_bits": row["headroom_bits"], "least_at": place_words(row, layout)}


def _at_decisions(scales: pd.DataFrame, divisions: Sequence[Division], layout: Layout) -> pd.DataFrame:
    """By what a variant divides the places that decided the scales: parameter, block, `divisor`."""
    places = scales[scales["site"].notna()] if "site" in scales else scales[:0]
    return places[["technique", "parameter", "block"]].assign(divisor=divisors(places, divisions, layout))


def _in_words(rows: pd.DataFrame, trial: Trial) -> pd.DataFrame:
    """`rows` with the columns `case` and `place`, as a person would name them."""
    cases = [case_words(row, trial.tried) for _, row in rows.iterrows()]
    places = [place_words(row, trial.layout) for _, row in rows.iterrows()]
    return rows.assign(case=cases, place=places)


def _about(trial: Trial, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """What scales.json says."""
    run = next(iter(trial.tried.values()))
    goal, heldout = trial.choice.goal, tables["heldout"]
    failing = tables["failures"]
    bad = failing[(failing["variant"] == RECIPE) & (failing["by"] == "run")]
    # after a value that is not finite, nothing is as predicted
    sound = heldout[~pd.MultiIndex.from_frame(heldout[CASE]).isin(pd.MultiIndex.from_frame(bad[CASE]))]
    error = (sound["measured_bits"] - sound["headroom_bits"]).abs()
    return {
        "experiment": run.manifest.experiment,
        "format": goal.fmt.name,
        "margin_bits": goal.margin_bits,
        "checkpoint": asdict(run.manifest.checkpoint),
        "environment": asdict(run.manifest.environment),
        "result": trial.layout.result.title,
        "techniques": trial.choice.tables(),
        "recipe": list(trial.nodes),
        "coverage": case_sets(trial.covered),
        "heldout": case_sets(trial.tried),
        "cases": {"coverage": _count(trial.covered), "heldout": _count(trial.tried)},
        "least_headroom_bits": number(heldout["headroom_bits"].min()),
        "least_measured_bits": number(heldout["measured_bits"].min()),
        "largest_difference_bits": number(error.max()),
        "least_normal_bits": number(tables["scales"]["normal_bits"].min()),
        "variants": {row["variant"]: strict(row) for row in tables["variants"].to_dict("records")},
        "failures": [strict(row) for row in tables["failures"].to_dict("records")],
        "margins": [strict(row) for row in tables["margins"].to_dict("records")],
        "unscaled": [
            {"place": place_words(row, trial.layout), "headroom_bits": number(row["headroom_bits"])}
            for _, row in tables["unscaled"].iterrows()
        ],
    }


def _count(runs: Mapping[str, Run]) -> int:
    return sum(len(run.manifest.prompts) * len(run.manifest.seeds) for run in runs.values())
