"""What a search leaves: tables, each recipe as a technique with its evidence, and the page."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml
from rich.console import Console

from precision_lab.cli import search_schema
from precision_lab.cli.terminal import print_table
from precision_lab.record import tables
from precision_lab.record.files import write_text
from precision_lab.record.search import TECHNIQUES, Findings, Search, Swap
from precision_lab.record.search_tables import CHOICES, RECIPES, TRIALS

if TYPE_CHECKING:
    from precision_lab.analysis.search.results import Result
    from precision_lab.cli import searching
    from precision_lab.cli.search_config import Prepared

_WIDTH = 118


def leave(ready: Prepared, search: searching.Search, limits: Mapping[str, int], settings: search_schema.Search) -> None:
    """Tries the recipes on held-out cases; writes the tables, the recipes and the findings into the folder."""
    from precision_lab.analysis.search.results import results
    from precision_lab.cli.search_config import SCAN

    out = ready.spec.out
    frame = search.check_held_out()
    tables.write(out, TRIALS, _kept(pd.DataFrame(search.rows), TRIALS))
    tables.write(out, RECIPES, _kept(frame, RECIPES))
    tables.write(out, CHOICES, search.choices())
    nodes = {
        recipe.name: search.nodes(recipe.choice, f"{recipe.name}_")
        for recipe in search.final
        if recipe.choice is not None and recipe.name in search.found.values()
    }
    found = {each.name: each for each in results(tables.read(out, RECIPES))}
    for name, techniques in nodes.items():
        text = _evidence(ready, found[name], search.noise_floor, settings) + _yaml(techniques)
        write_text(out / TECHNIQUES / f"{name}.yaml", text)
    swaps = {
        budget: [Swap(each.raised, each.lowered, each.ratio) for each in own] for budget, own in search.accepted.items()
    }
    scanned = str(ready.scanned.path) if ready.scanned else None if ready.scan is None else SCAN
    Findings(
        strategy=settings.strategy,
        dtype=ready.dtype,
        limits=limits,
        found=search.found,
        gaps=search.gaps,
        noise_floor=search.noise_floor,
        swaps=swaps,
        components=sorted(ready.recipes.components),
        scan=scanned,
        remarks=search.said,
        patterns={name: {key: _sites(node) for key, node in own.items()} for name, own in nodes.items()},
    ).write(out)


def draw_search(folder: Path, console: Console) -> None:
    """The page of a finished search; prints its recipes, what they say, and the path of the page."""
    from precision_lab.report import search as report

    search = Search.open(folder)
    page = report.write(search)
    print_table(console, report.HEADINGS, report.cells(search), report.title(search), folding=("recipe",))
    for line in report.sentences(search):
        console.print(line, soft_wrap=True)
    for name in search.findings.found.values():
        console.print(f"recipe: {folder / TECHNIQUES / f'{name}.yaml'}", soft_wrap=True)
    console.print(f"report: {page}", soft_wrap=True)


def _kept(frame: pd.DataFrame, table: str) -> pd.DataFrame:
    return frame.reindex(columns=list(tables.empty(table).columns))


def _evidence(ready: Prepared, result: Result, noise_floor: float, settings: search_schema.Search) -> str:
    """The comment at the head of a recipe."""
    spec, checkpoint = ready.spec, ready.spec.source.checkpoint
    interval = "" if math.isnan(result.lo) else f", 95 % interval {result.lo:.4g} to {result.hi:.4g} over prompts"
    predicted = "not predicted" if math.isnan(result.predicted) else f"{result.predicted:.4g} predicted"
    size = f"{result.nbytes / 1e9:.6g} GB of linear weights in {', '.join(sorted(ready.recipes.components))}"
    drift = f"relative L2 of the last result from float32, computed in {ready.dtype}"
    lines = [
        f"{result.name}: found by precision_lab search, strategy {settings.strategy}, budget {result.budget}",
        f"weights: {checkpoint.name}, fingerprint {checkpoint.fingerprint}, {checkpoint.weights}",
        f"size: {size}, {result.bits:.3f} bits a weight",
        f"drift ({drift}): {predicted}, {result.drift:.4g} in the {len(ready.cases)} cases of the search",
        f"held out: {result.held_out:.4g} in {len(ready.held_out)} cases that the search has not seen{interval}",
        f"noise floor of a drift: {noise_floor:.2g}, relative",
        f"command: {shlex.join(spec.command)}",
        f"use: --config-dir THE FOLDER ABOVE THIS ONE technique=[{result.name}]",
    ]
    return "".join(f"# {line}\n" for line in lines)


def _yaml(nodes: Mapping[str, Mapping[str, Any]]) -> str:
    return str(yaml.safe_dump(dict(nodes), sort_keys=False, width=_WIDTH, default_flow_style=None))


def _sites(node: Any) -> list[str]:
    """The patterns of a node, whatever its entries are called."""
    if isinstance(node, Mapping):
        own = node.get("sites")
        if own is not None:
            return [own] if isinstance(own, str) else list(own)
        return [pattern for value in node.values() for pattern in _sites(value)]
    return [pattern for value in node for pattern in _sites(value)] if isinstance(node, list) else []
