"""`python -m experiments.search.numbers SEARCH SCAN DIR`: the numbers of the page, from two finished folders.

SEARCH: of `search budget.bits=6`; SCAN: of `sensitivity`. Leaves search/recipes.json and sensitivity/ranks.json in DIR.
"""

from __future__ import annotations

import math
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from precision_lab.analysis.search.results import comparisons, results
from precision_lab.analysis.sensitivity import candidates_of, ranking
from precision_lab.record.files import write_json
from precision_lab.record.manifest import Manifest
from precision_lab.record.scan import Scan
from precision_lab.record.search import Search

_MOST = 3


def recipes(search: Search) -> dict[str, Any]:
    """Every recipe, and the found one against those of its size."""
    [found] = search.findings.found.values()
    return {
        "minutes": minutes(search.manifest),
        "noise_floor": search.findings.noise_floor,
        "gap": max(search.findings.gaps.values()),
        "swaps": sum(map(len, search.findings.swaps.values())),
        "recipes": {each.name: _plain(vars(each)) for each in results(search.recipes)},
        "against": {
            each.other: _plain(vars(each)) for each in comparisons(search.recipes, found, search.findings.noise_floor)
        },
    }


def ranks(scan: Scan) -> dict[str, Any]:
    """For each candidate, the number of groups, those that tie with another one, and the first of the ranking."""
    by_candidate = {}
    for candidate in candidates_of(scan.sensitivity):
        ranked = ranking(scan.sensitivity, candidate)
        worst = ranked.head(_MOST)
        by_candidate[candidate] = {
            "groups": len(ranked),
            "worst": {
                str(row["group"]): _plain({name: row[name] for name in ("velocity_error", "free_drift")})
                for row in worst.to_dict("records")
            },
        }
    return {"minutes": minutes(scan.manifest), "candidates": by_candidate}


def minutes(manifest: Manifest) -> float:
    """Minutes of wall time from the first to the last write of a command, without its imports and figures."""
    begun, ended = (datetime.fromisoformat(str(time)) for time in (manifest.started, manifest.finished))
    return (ended - begun).total_seconds() / 60


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }


def main(search: Path, scan: Path, out: Path) -> None:
    for name, content in (
        ("search/recipes", recipes(Search.open(search))),
        ("sensitivity/ranks", ranks(Scan.open(scan))),
    ):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{name}.json", content)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
