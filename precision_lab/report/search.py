"""The page on a search: the recipes, how sure their order is, the front, and what the strategies did."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from precision_lab.analysis.search.results import Result, additivity_of, comparisons, results
from precision_lab.record.files import read_text, write_text, writing
from precision_lab.record.search import TECHNIQUES, Search
from precision_lab.record.search_tables import OF_A_SEARCH
from precision_lab.report.figures import search_front, search_map, style
from precision_lab.report.figures.search_front import WORDS
from precision_lab.report.rendering import embed, render, weights_text
from precision_lab.report.wording import MISSING, number

PAGE = "report.html"
HEADINGS = ("no.", "recipe", "by", "GB", "bits", "predicted", "drift", "held out", "95 % interval", "PSNR dB", "front")
_MOST_MAPS = 4


def write(search: Search) -> Path:
    """Writes `figures/` and `report.html` into the folder of a search; returns the page's path.

    The same tables give the same bytes.
    """
    folder = search.path / "figures"
    with writing(folder):
        folder.mkdir(exist_ok=True)
    found, findings = results(search.recipes), search.findings
    unseen = len(search.recipes.loc[search.recipes["held_out"], ["prompt_id", "seed"]].drop_duplicates())
    names = list(findings.found.values())
    with style.theme():
        drawings = (
            search_front.draw_front(found, findings, unseen, search.manifest.layout.result.title),
            search_front.draw_trials(search.trials, findings),
            search_map.draw(search.choices, names[:_MOST_MAPS]),
            search_front.draw_additivity(found, additivity_of(found).words),
        )
        figures = embed(drawings, folder)
    page = search.path / PAGE
    write_text(
        page,
        render(
            "search.html",
            manifest=search.manifest,
            findings=findings,
            weights_text=weights_text(search.manifest.checkpoint),
            headings=HEADINGS,
            rows=cells(search),
            sentences=sentences(search),
            figures=figures,
            recipes={name: read_text(search.path / TECHNIQUES / f"{name}.yaml") for name in names},
            columns=OF_A_SEARCH,
            command=shlex.join(search.manifest.command),
            seen=len(search.recipes.loc[~search.recipes["held_out"], ["prompt_id", "seed"]].drop_duplicates()),
            unseen=unseen,
        ),
    )
    return page


def title(search: Search) -> str:
    """Above the table of recipes."""
    return f"Recipes for {search.manifest.checkpoint.name}, computed in {search.findings.dtype}"


def cells(search: Search) -> list[list[str]]:
    """The recipes as text, under `HEADINGS`."""
    return [
        [
            str(at + 1),
            each.name,
            WORDS[each.strategy],
            f"{each.nbytes / 1e9:.5g}",
            f"{each.bits:.3f}",
            _number(each.predicted),
            _drift(each, each.drift),
            _drift(each, each.held_out),
            MISSING if math.isnan(each.lo) else f"[{number(each.lo)}, {number(each.hi)}]",
            _number(each.psnr_db),
            "yes" if each.on_front else "",
        ]
        for at, each in enumerate(results(search.recipes))
    ]


def sentences(search: Search) -> list[str]:
    """What the search says of its result, each in a sentence or two."""
    findings, found = search.findings, results(search.recipes)
    said = list(findings.remarks)
    for budget, name in findings.found.items():
        limit = findings.limits[budget]
        of_budget = next(each for each in found if each.name == name)
        gap = findings.gaps.get(budget)
        proven = "" if gap is None else f" The knapsack's prediction is proven to be within {gap:.2%} of the best."
        said.append(
            f"{budget}: {name} has {of_budget.nbytes / 1e9:.5g} GB, of {limit / 1e9:.5g} allowed, "
            f"{of_budget.bits:.3f} bits a weight.{proven}"
        )
        swaps = findings.swaps.get(budget, ())
        if swaps:
            said.append(
                f"{budget}: exchange kept {len(swaps)} swap{'s' * (len(swaps) > 1)}: "
                + "; ".join(f"{s.raised} up, {s.lowered} down ({s.ratio:.3f} times the drift)" for s in swaps)
                + "."
            )
        elif findings.strategy == "knapsack":
            said.append(f"{budget}: exchange kept no swap; none lowers the drift of every case, and the mean by 1 %.")
        said += [f"{each.words}." for each in comparisons(search.recipes, name, findings.noise_floor)]
    if any(each.predicted > 0 for each in found):
        said.append(additivity_of(found).words)
    said.append(f"A trial's drift has a relative noise floor of {findings.noise_floor:.2g}.")
    if not (search.trials["strategy"] == "optuna").any() and findings.strategy == "knapsack":
        said.append("Optuna was not compared: optuna.baseline=true, with pip install 'precision-lab[search]'.")
    return said


def _drift(result: Result, value: float) -> str:
    if result.error is not None:
        return "failed"
    return "non-finite" if math.isnan(value) and result.num_nonfinite else _number(value)


def _number(value: float) -> str:
    return MISSING if not math.isfinite(value) else number(value)
