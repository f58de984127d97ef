"""`python -m experiments.culprits OUT [CASES]`: random planted culprits of every kind, and what the search finds.

Writes OUT/culprits.json, with one entry for each case. Checkpoints and searches are made in a temporary folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments.culprits.plants import KINDS, budget, healthy, searched
from precision_lab.device.environment import environment
from precision_lab.record.files import write_json


def main(out: Path, cases: int) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        checkpoint = healthy(root / "healthy")
        drift = budget(checkpoint, root)
        found: list[dict[str, Any]] = []
        for seed in range(cases):
            for kind in KINDS:
                found.append(searched(checkpoint, root, kind, seed, drift))
                print(json.dumps(found[-1]), flush=True)
    exact = sum(case["exact"] and case["runs"] <= case["bound"] for case in found)
    about = {name: environment()[name] for name in ("device", "cores", "mlx", "commit")}
    summary = {"cases": len(found), "exact_within_bound": exact, "drift_budget": drift, "weights": "synthetic"}
    write_json(out / "culprits.json", {**summary, "environment": about, "found": found})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10)
