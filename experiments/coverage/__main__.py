"""Coverage of the intervals of claims and of latency, by simulation.

    python -m experiments.coverage --to DIR

Draws experiments whose true ratio is known, and counts how many 95 % intervals contain it: the interval over prompts
that claims use and the interval over cases that they used before, for several designs, shares of the prompts in the
variance, and distributions; and the interval over rounds of timing beside the bootstrap used before. Writes
DIR/summary.json and DIR/coverage.png in about a minute on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from experiments.coverage import claims, latency
from experiments.coverage.figure import draw
from precision_lab.report.figures import style


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--replications", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = study(arguments.replications, arguments.seed)
    arguments.to.mkdir(parents=True, exist_ok=True)
    (arguments.to / "summary.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    with style.theme():
        style.save(draw(found), arguments.to)
    for name, worst in found["worst"].items():
        print(f"{name}: {worst['least']:.3f} to {worst['most']:.3f}")


def study(replications: int, seed: int) -> dict[str, Any]:
    """All results as strict JSON. worst: the least and greatest coverage of each group of cells."""
    found: dict[str, Any] = {
        "replications": replications,
        "seed": seed,
        "confidence": claims.CONFIDENCE,
        "claims": claims.cells(replications, seed),
        "latency": latency.cells(replications, seed),
        "stopping": latency.stopping(replications // 4, seed),
    }
    groups = {
        name: [cell["prompts_coverage"] for cell in found["claims"] if cell["distribution"] == name]
        for name in claims.DISTRIBUTIONS
    }
    groups |= {
        f"cases as units, {name}": [cell["cases_coverage"] for cell in found["claims"] if cell["distribution"] == name]
        for name in claims.DISTRIBUTIONS
    }
    groups["rounds"] = [cell["coverage"] for cell in found["latency"]]
    groups["rounds by bootstrap"] = [cell["bootstrap_coverage"] for cell in found["latency"]]
    groups["stopped when narrow"] = [cell["coverage"] for cell in found["stopping"]]
    found["worst"] = {name: {"least": min(values), "most": max(values)} for name, values in groups.items()}
    return found


if __name__ == "__main__":
    main()
