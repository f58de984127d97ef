"""`python -m experiments.culprits OUT [CASES [FIRST]]`: random planted culprits, and what the search finds.

CASES: of each kind whose plant takes, 10 by default. FIRST: the seed of the first.

Writes OUT/culprits.json, with one entry for each case. Checkpoints and searches are made in a temporary folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from experiments.culprits.cases import cases
from experiments.culprits.plants import KINDS, budget, healthy
from precision_lab.device.environment import environment
from precision_lab.record.files import write_json


def main(out: Path, count: int, first: int) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        checkpoint = healthy(root / "healthy")
        drift = budget(checkpoint, root)
        found: list[dict[str, Any]] = []
        for kind in KINDS:
            for case in cases(checkpoint, root, kind, first, count, drift):
                found.append(case)
                print(json.dumps(case), flush=True)
    write_json(out / "culprits.json", summary(found, drift))


def summary(every: Sequence[Mapping[str, Any]], drift: float) -> dict[str, Any]:
    """All cases, and their numbers by kind. drift: the budget of the searches in 4 bits."""
    found = [case for case in every if "rejected" not in case]
    rejected = [case for case in every if "rejected" in case]
    kinds = []
    for kind in KINDS:
        own = [case for case in found if case["kind"] == kind.name]
        kinds.append(
            {
                "id": kind.name,
                "cases": len(own),
                "exact_within_bound": sum(_is_met(case) for case in own),
                "planted": sum(len(case["planted"]) for case in own),
                "rejected": sum(case["kind"] == kind.name for case in rejected),
                "groups": own[0]["groups"],
                "runs": median(case["runs"] for case in own),
                "bound": median(case["bound"] for case in own),
                "validated": sum(bool(case["validated"]) for case in own),
                "only": sum(bool(case["is_only"]) for case in own),
            }
        )
    return {
        "cases": len(found),
        "exact_within_bound": sum(map(_is_met, found)),
        "rejected_plants": len(rejected),
        "largest_share_of_bound": max(case["runs"] / case["bound"] for case in found),
        "violations": sum(case["violations"] for case in found),
        "drift_budget": drift,
        "weights": "synthetic",
        "environment": {name: environment()[name] for name in ("device", "cores", "mlx", "commit")},
        "kinds": kinds,
        "found": found,
        "rejected": rejected,
    }


def _is_met(case: Mapping[str, Any]) -> bool:
    return bool(case["exact"] and case["runs"] <= case["bound"])


if __name__ == "__main__":
    count, first = [*map(int, sys.argv[2:]), *(10, 0)[len(sys.argv) - 2 :]]
    main(Path(sys.argv[1]), count, first)
